//! Other engines as child processes that answer JSON lines, see `tools/peers.py`; Pith itself is measured as one of them ([`super::pith`]).
//!
//! All of them run pinned to one core and sleep while another one works.

use super::default_folder;
use crate::{ToolError, absolute, call, has, root};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Every peer, in the order of the table.
pub const ENGINES: [&str; 8] = [
    "ort_fp32",
    "ort_int8",
    "litert_fp32",
    "litert_int8",
    "tract_fp32",
    "tract_int8",
    "openvino_fp32",
    "openvino_int8",
];

/// A process with engines in it.
pub struct Server {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

/// What an engine is given.
pub struct Load<'a> {
    /// ONNX, or packed for Pith.
    pub model: &'a Path,
    /// Samples as the ONNX input takes them, `.npy`.
    pub samples: &'a Path,
    /// The same network for LiteRT.
    pub tflite: Option<&'a Path>,
}

impl Server {
    /// Starts `program` on one core (none: wherever), its standard error in a log.
    pub fn start(name: &str, program: &mut Command, cpu: Option<usize>) -> Result<Server, ToolError> {
        let log = default_folder().join(format!("{name}.log"));
        let failed = |e: std::io::Error| ToolError(format!("cannot start {name}: {e}"));
        std::fs::create_dir_all(default_folder()).map_err(failed)?;
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(program.get_program()).args(program.get_args());
                command.envs(program.get_envs().filter_map(|(k, v)| Some((k, v?))));
                command
            }
            None => std::mem::replace(program, Command::new("")),
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log).map_err(failed)?);
        let mut child = command.spawn().map_err(failed)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => {
                Ok(Server { name: name.into(), child, input, output: BufReader::new(output), log })
            }
            _ => Err(ToolError(format!("cannot start {name}: no pipes"))),
        }
    }

    /// Prepares a model; the engine's version and instruction set, or why it cannot.
    pub fn load(&mut self, engine: &str, load: &Load<'_>) -> Result<Result<(String, String), String>, ToolError> {
        let request = json!({
            "cmd": "load", "engine": engine, "model": load.model, "calibration": load.samples,
            "tflite": load.tflite, "cache": default_folder().join("cache"),
        });
        let text = |answer: &Value, key: &str| answer[key].as_str().unwrap_or("?").to_string();
        Ok(self.ask(&request)?.map(|answer| (text(&answer, "version"), text(&answer, "isa"))))
    }

    /// Nanoseconds of one inference, the mean of `runs` in a row.
    pub fn time(&mut self, engine: &str, model: &Path, runs: usize) -> Result<f64, ToolError> {
        let answer = self.ask(&json!({"cmd": "time", "engine": engine, "model": model, "runs": runs}))?;
        answer.ok().and_then(|a| a["per_run_ns"].as_f64()).ok_or_else(|| self.broken(engine))
    }

    /// The first output for the first sample.
    pub fn check(&mut self, engine: &str, model: &Path) -> Result<Result<Vec<f64>, String>, ToolError> {
        let answer = self.ask(&json!({"cmd": "check", "engine": engine, "model": model}))?;
        Ok(answer.map(|a| a["output"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()))
    }

    /// The answer, or the engine's reason against it.
    fn ask(&mut self, request: &Value) -> Result<Result<Value, String>, ToolError> {
        let engine = request["engine"].as_str().unwrap_or("?");
        let mut line = String::new();
        let sent = writeln!(self.input, "{request}").and_then(|()| self.input.flush());
        let got = sent.and_then(|()| self.output.read_line(&mut line));
        let answer: Value = match got {
            Ok(n) if n > 0 => serde_json::from_str(&line).map_err(|_| self.broken(engine))?,
            _ => return Err(self.broken(engine)),
        };
        Ok(match answer["ok"].as_bool() {
            Some(true) => Ok(answer),
            _ => Err(answer["why"].as_str().unwrap_or("no reason").lines().next().unwrap_or("").to_string()),
        })
    }

    fn broken(&self, engine: &str) -> ToolError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let said = log.lines().last().unwrap_or("nothing said");
        ToolError(format!("{} ended or failed at {engine}: {said} (all of it: {})", self.name, self.log.display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last core, where the system has put the least; none where nothing can pin.
pub fn default_cpu() -> Option<usize> {
    has("taskset").then(|| std::thread::available_parallelism().map_or(0, |n| n.get() - 1))
}

/// The peers' program in the Python environment, which is made first if it is not there.
pub fn program() -> Result<Command, ToolError> {
    let python = environment(&root().join("target/peers"), Path::new("tools/peers-requirements.txt"))?;
    let mut command = Command::new(python);
    command.arg(root().join("tools/peers.py"));
    Ok(command)
}

/// The Python of an environment with the packages that a file of the repository asks for.
pub fn environment(folder: &Path, requirements: &Path) -> Result<PathBuf, ToolError> {
    let wanted = root().join(requirements);
    let environment = absolute(folder)?;
    let (python, stamp) = (environment.join("bin/python"), environment.join("requirements.txt"));
    let same = std::fs::read(&stamp).ok().zip(std::fs::read(&wanted).ok()).is_some_and(|(a, b)| a == b);
    if !same {
        eprintln!("installing {} into {}", requirements.display(), environment.display());
        install(&environment, &python, &wanted).and_then(|()| {
            std::fs::copy(&wanted, &stamp).map_err(|e| ToolError(format!("{}: {e}", stamp.display())))
        })?;
    }
    Ok(python)
}

fn install(environment: &Path, python: &Path, requirements: &Path) -> Result<(), ToolError> {
    let made = call(Command::new("python3").args(["-m", "venv"]).arg(environment)).and_then(|_| {
        let pip = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r"];
        call(Command::new(python).args(pip).arg(requirements))
    });
    let advice = "run this where Python's venv and PyPI can be had, or measure Pith alone with --peers none";
    made.map(drop).map_err(|e| ToolError(format!("cannot install the peers: {advice} ({e})")))
}
