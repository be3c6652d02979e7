//! Pith as one of the engines of `bench desktop`: a child that answers the requests of `tools/peers.py`.
//!
//! Engine `int8` takes and gives int8, as LiteRT's int8 files do; `float` also quantizes a float input and turns the output back, as
//! onnxruntime, OpenVINO and tract do with their int8 models.

use crate::ToolError;
use pith::Model;
use quantize::data;
use quantize::execute::{self, Runner, input_slots, output_slots};
use quantize::pack::ModelFile;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// A model with the input that is timed, ready to run: all that depends on how Pith executes on a desktop.
struct Network {
    model: Model<'static>,
    runner: Runner<'static>,
    input: Vec<f32>,
}

impl Network {
    fn load(model: &Path, samples: &Path) -> Result<Network, String> {
        let isa = execute::isa().map_err(|e| e.to_string())?;
        // As long as the process.
        let file = Box::leak(Box::new(ModelFile::read(model).map_err(|e| e.to_string())?));
        let model = Model::parse(file.as_bytes()).map_err(|e| e.to_string())?;
        let set = data::load(samples, &input_slots(&model), None, usize::MAX).map_err(|e| e.to_string())?;
        match set.samples.first().map(Vec::as_slice) {
            Some([sample]) => {
                let input = sample.iter().copied().collect();
                Ok(Network { model, runner: Runner::on(&model, isa), input })
            }
            _ => Err("want one input".into()),
        }
    }

    /// Wall time of so many inferences; the first output, as real numbers if the engine is `float`, is left in `output`.
    fn time(&mut self, runs: usize, is_float: bool, output: &mut Vec<f32>) -> Result<Duration, String> {
        let (input, port_out) = (self.model.inputs()[0], self.model.outputs()[0]);
        let quantized: Vec<i8> = self.input.iter().map(|&x| input.quantize(x)).collect();
        let mut bytes = vec![0; self.model.tensor(port_out.tensor).len as usize];
        output.resize(bytes.len(), 0.0);
        let mut elapsed = Duration::ZERO;
        self.runner.with_engine(|engine| {
            let start = Instant::now();
            for _ in 0..runs {
                match is_float {
                    false => engine.input(0).copy_from_slice(black_box(&quantized)),
                    true => engine.write_input(0, black_box(&self.input)),
                }
                engine.run();
                match is_float {
                    false => bytes.copy_from_slice(engine.output(0)),
                    true => engine.read_output(0, output),
                }
                black_box((&bytes, &output));
            }
            elapsed = start.elapsed();
        });
        Ok(elapsed)
    }

    /// The float output in the ONNX file's axes.
    fn output(&mut self) -> Result<Vec<f32>, String> {
        let mut values = Vec::new();
        self.time(1, true, &mut values)?;
        let slot = &output_slots(&self.model)[0];
        let value = ndarray::ArrayD::from_shape_vec(ndarray::IxDyn(&slot.shape), values).map_err(|e| e.to_string())?;
        Ok(slot.to_onnx(&value).into_iter().collect())
    }
}

/// Answers requests until the input ends.
pub fn serve() -> Result<(), ToolError> {
    let mut networks = HashMap::new();
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| ToolError(e.to_string()))?;
        let answer = serde_json::from_str(&line).map_err(|e| e.to_string()).and_then(|r| answer(&mut networks, &r));
        let answer = answer.unwrap_or_else(|why| json!({"ok": false, "why": why}));
        let mut out = std::io::stdout();
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(|e| ToolError(e.to_string()))?;
    }
    Ok(())
}

fn answer(networks: &mut HashMap<String, Network>, request: &Value) -> Result<Value, String> {
    let text = |key: &str| request[key].as_str().ok_or_else(|| format!("`{key}` must be text"));
    let (command, model) = (text("cmd")?, text("model")?);
    if command == "load" {
        let network = Network::load(Path::new(model), Path::new(text("calibration")?))?;
        let isa = execute::isa().map_err(|e| e.to_string())?.name();
        networks.insert(model.into(), network);
        return Ok(json!({"ok": true, "version": concat!("pith ", env!("CARGO_PKG_VERSION")), "isa": isa}));
    }
    let network = networks.get_mut(model).ok_or("not loaded")?;
    match command {
        "time" => {
            let runs = request["runs"].as_u64().filter(|&n| n > 0).ok_or("`runs` must be a number from 1 on")? as usize;
            let (is_float, mut output) = (text("engine")? == "float", Vec::new());
            // Caches and clock as in a long run.
            network.time(runs.div_ceil(8), is_float, &mut output)?;
            let time = network.time(runs, is_float, &mut output)?;
            Ok(json!({"ok": true, "per_run_ns": time.as_nanos() as f64 / runs as f64}))
        }
        "check" => Ok(json!({"ok": true, "output": network.output()?})),
        _ => Err(format!("no such command: {command}")),
    }
}
