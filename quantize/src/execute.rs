//! A packed model on the host: the runtime itself, fed with raw samples.

use crate::data::Slot;
use crate::pack::Arena;
use ndarray::{ArrayD, IxDyn};
use pith::format::tensor::{Port, Tensor};
use pith::{Engine, Model};

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

/// Runs one sample after another in its own arena.
#[derive(Debug)]
pub struct Runner<'m> {
    model: Model<'m>,
    arena: Arena,
}

impl<'m> Runner<'m> {
    /// A runner with an arena of exactly the planned size.
    pub fn new(model: &Model<'m>) -> Runner<'m> {
        Runner { model: *model, arena: Arena::new(model.arena_bytes(), 0) }
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

    fn with_engine(&mut self, f: impl FnOnce(&mut Engine<'m, '_>)) {
        if let Ok(mut engine) = Engine::new(&self.model, self.arena.bytes_mut()) {
            f(&mut engine);
        }
    }
}
