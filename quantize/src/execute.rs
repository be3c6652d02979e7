//! A packed model on the host: the runtime itself, fed with raw samples.

use crate::data::Slot;
use crate::pack::Arena;
use ndarray::{ArrayD, IxDyn};
use pith::format::tensor::{Port, Tensor};
use pith::{Engine, Isa, Model, Parallel};
use rayon::prelude::*;

/// Shape of a port's tensor with a batch axis.
pub fn shape_of(model: &Model<'_>, port: &Port) -> Vec<usize> {
    let tensor: Tensor = model.tensor(port.tensor);
    let dims = tensor.dims.iter().take(tensor.rank as usize).map(|&d| d as usize);
    std::iter::once(1).chain(dims).collect()
}

/// Inputs of a model as data slots.
pub fn input_slots(model: &Model<'_>) -> Vec<Slot> {
    model.inputs().iter().map(|p| slot(model, p)).collect()
}

/// Outputs of a model as data slots.
pub fn output_slots(model: &Model<'_>) -> Vec<Slot> {
    model.outputs().iter().map(|p| slot(model, p)).collect()
}

fn slot(model: &Model<'_>, port: &Port) -> Slot {
    Slot { name: model.port_name(port).into(), shape: shape_of(model, port), is_nchw: port.layout == Port::NCHW }
}

/// Raw values of one input as int8.
pub fn quantize(port: &Port, raw: &ArrayD<f32>) -> Vec<i8> {
    raw.iter().map(|&v| port.quantize(v)).collect()
}

/// Int8 values of a tensor as real ones, in its own axes.
pub fn dequantize(port: &Port, shape: &[usize], q: &[i8]) -> ArrayD<f32> {
    let values = q.iter().map(|&q| port.dequantize(q)).collect();
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_default()
}

/// The variable that names the instruction set which models run on.
pub const ISA_VARIABLE: &str = "PITH_ISA";

/// A set that `PITH_ISA` cannot name.
#[derive(Debug, thiserror::Error)]
#[error("PITH_ISA={name}: this machine has {known}")]
pub struct NoSuchIsa {
    name: String,
    known: String,
}

/// The set that models run on: the best of this machine, or the one that `PITH_ISA` names.
pub fn isa() -> Result<Isa, NoSuchIsa> {
    let name = std::env::var_os(ISA_VARIABLE);
    name.map_or_else(|| Ok(Isa::detect()), |name| isa_of(&name.to_string_lossy()))
}

fn isa_of(name: &str) -> Result<Isa, NoSuchIsa> {
    let all = || std::iter::once(Isa::Generic).chain(Isa::available());
    all().find(|isa| isa.name() == name).ok_or_else(|| {
        let known: Vec<&str> = all().map(Isa::name).collect();
        NoSuchIsa { name: name.into(), known: known.join(", ") }
    })
}

/// Runs one sample after another in its own arena.
#[derive(Debug)]
pub struct Runner<'m> {
    model: Model<'m>,
    arena: Arena,
    isa: Isa,
    workspace: Vec<u8>,
    /// Coded weights, where no workspace holds them.
    decoded: Arena,
    threads: Option<Threads>,
}

/// A pool of threads that helps with large operators.
#[derive(Debug)]
struct Threads(rayon::ThreadPool);

impl Parallel for Threads {
    fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    fn run(&self, parts: &mut [&mut (dyn FnMut() + Send)]) {
        self.0.install(|| parts.par_iter_mut().for_each(|part| part()));
    }
}

impl<'m> Runner<'m> {
    /// A runner with an arena of exactly the planned size, on the set of [`isa`].
    pub fn new(model: &Model<'m>) -> Runner<'m> {
        Runner::on(model, isa().unwrap_or_else(|_| Isa::detect()))
    }

    /// A runner on one of [`Isa::available`], or with another set on the generic kernels alone.
    pub fn on(model: &Model<'m>, isa: Isa) -> Runner<'m> {
        let workspace = vec![0; Engine::workspace_bytes(model, isa)];
        let mut decoded = Arena::new(if workspace.is_empty() { model.decoded_bytes() } else { 0 }, 0);
        if workspace.is_empty() {
            // Damaged weights are found when an engine is made.
            let _ = model.decode_into(decoded.bytes_mut(), &mut vec![0; model.decode_scratch_bytes()]);
        }
        Runner { model: *model, arena: Arena::new(model.arena_bytes(), 0), isa, workspace, decoded, threads: None }
    }

    /// With so many threads for large operators; the outputs are the same.
    pub fn with_threads(self, count: usize) -> Result<Runner<'m>, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build()?;
        Ok(Runner { threads: (count > 1).then_some(Threads(pool)), ..self })
    }

    /// Int8 outputs for int8 inputs; inputs longer or shorter than the model's are cut or leave the rest as it was.
    pub fn run_raw(&mut self, inputs: &[Vec<i8>]) -> Vec<Vec<i8>> {
        let mut outputs = Vec::new();
        self.with_engine(|engine| {
            for (i, values) in inputs.iter().enumerate() {
                engine.input(i).iter_mut().zip(values).for_each(|(to, &q)| *to = q);
            }
            engine.run();
            outputs = (0..engine.model().outputs().len()).map(|i| engine.output(i).to_vec()).collect();
        });
        outputs
    }

    /// Real outputs (in the file's axes, with a batch axis) for raw inputs.
    pub fn run(&mut self, inputs: &[ArrayD<f32>]) -> Vec<ArrayD<f32>> {
        let model = self.model;
        let quantized: Vec<Vec<i8>> = model.inputs().iter().zip(inputs).map(|(p, x)| quantize(p, x)).collect();
        let outputs = self.run_raw(&quantized);
        model.outputs().iter().zip(outputs).map(|(p, q)| dequantize(p, &shape_of(&model, p), &q)).collect()
    }

    /// Runs step by step and calls `visit` with the tensor that each operator wrote.
    pub fn run_visiting(&mut self, inputs: &[ArrayD<f32>], visit: &mut dyn FnMut(u16, &[i8])) {
        let model = self.model;
        self.with_engine(|engine| {
            for (i, (port, x)) in model.inputs().iter().zip(inputs).enumerate() {
                let values = quantize(port, x);
                engine.input(i).iter_mut().zip(values).for_each(|(to, q)| *to = q);
            }
            let mut steps = engine.steps();
            while let Some((_, op)) = steps.step() {
                visit(op.output(), steps.tensor(op.output()));
            }
        });
    }

    /// Calls `f` with an engine over this runner's memory; weights are packed for the machine when it is first made.
    pub fn with_engine(&mut self, f: impl FnOnce(&mut Engine<'_, '_>)) {
        let arena = self.arena.bytes_mut();
        let engine = match self.workspace.is_empty() {
            true => self.model.with_decoded(self.decoded.bytes_mut()).and_then(|model| Engine::new(&model, arena)),
            false => Engine::with_workspace(&self.model, arena, self.isa, &mut self.workspace),
        };
        if let Ok(engine) = engine {
            f(&mut match &self.threads {
                Some(threads) => engine.in_parallel(threads),
                None => engine,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_chosen_by_name() {
        assert_eq!(isa_of("generic").unwrap(), Isa::Generic);
        Isa::available().for_each(|isa| assert_eq!(isa_of(isa.name()).unwrap(), isa));
        let refused = isa_of("helium").unwrap_err().to_string();
        assert!(refused.starts_with("PITH_ISA=helium: this machine has generic"), "{refused}");
    }
}
