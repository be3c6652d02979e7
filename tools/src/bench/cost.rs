//! `cargo xtask bench cost`: what kernels execute, counted on emulated cores and fitted, see [`quantize::cost`].
//!
//! Chains of layers of many shapes are quantized to 8, 4, 2 and 5 bits (which stands for all other widths) and run; the factors of every kernel
//! are the non-negative ones with the least squares of errors, each over the root of its count, so that neither small nor large layers decide alone. Then real networks, which took no part in the fit, are counted and predicted.

use super::{Subject, chosen};
use crate::core::Core;
use crate::qemu::run_on_core;
use crate::{ToolError, root};
use ndarray::{ArrayD, IxDyn};
use pith::{Isa, Model};
use quantize::build::{BuildOptions, build};
use quantize::calibrate::Observer;
use quantize::cost::{CostTable, Features, Kernel, OTHER, features};
use quantize::graph::{BinaryKind, Clamp, Graph, Op, TensorId, Window};
use quantize::pack::ModelFile;
use quantize::random::Random;
use quantize::recipe::Recipe;
use quantize::report::{grouped, table};
use std::collections::BTreeMap;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cores, one for each instruction set
    #[arg(long, value_delimiter = ',', default_value = "m0,m3,m4,m55,riscv")]
    core: Vec<Core>,
    /// Do not fit: only count and predict real networks
    #[arg(long)]
    check: bool,
    /// Real networks [default: ic_resnet8, kws_ref, ad01; digits without shared data]
    #[arg(long, value_delimiter = ',')]
    model: Vec<String>,
}

/// The verb; false if a prediction is off by more than a tenth.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let (mut rows, mut close) = (Vec::new(), true);
    for &core in &args.core {
        let table = match args.check {
            true => CostTable::of(core.isa()).cloned().unwrap_or_default(),
            false => fit(core)?,
        };
        for name in chosen(&args.model, &["ic_resnet8", "kws_ref", "ad01"]) {
            eprintln!("{name} on the {}", core.name());
            let (counted, predicted) = real(&name, core, &table)?;
            let off = predicted / counted as f64 - 1.0;
            close &= off.abs() <= 0.1;
            let off = format!("{:+.1} %", 100.0 * off);
            rows.push(vec![core.name().into(), name, grouped(counted), grouped(predicted as u64), off]);
        }
    }
    println!("{}", text(&rows));
    Ok(close)
}

fn text(rows: &[Vec<String>]) -> String {
    table(&["core", "network", "counted", "predicted", "off"], rows)
        + "Instructions of a run under QEMU, not cycles; the networks took no part in the fit."
}

fn failed(e: impl std::fmt::Display) -> ToolError {
    ToolError(e.to_string())
}

/// Counts of a real network in 8 bits, and what the table says.
fn real(name: &str, core: Core, table: &CostTable) -> Result<(u64, f64), ToolError> {
    let subject = Subject::load(name)?;
    let (bytes, run) = count(&subject.graph, &subject.samples, &subject.is_u8, (8, core.isa()), core)?;
    let file = ModelFile::new(&bytes);
    let model = Model::parse(file.as_bytes()).map_err(failed)?;
    let unknown = |kernels| ToolError(format!("{name}: no counts of {kernels:?} on the {}", core.name()));
    Ok((run.instructions, table.run(&model).map_err(unknown)?))
}

/// Builds a graph quickly, with weights of so many bits and for a set, and runs it.
fn count(
    graph: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    is_u8: &[bool],
    (bits, isa): (u8, Isa),
    core: Core,
) -> Result<(Vec<u8>, crate::qemu::Run), ToolError> {
    let mut recipe = Recipe::default();
    let q = &mut recipe.quantize;
    (q.weight_bits, q.observer, q.bias_correction, q.equalize) =
        (bits, Some(Observer::MinMax), Some(false), Some(false));
    let mut options = BuildOptions { shrink: false, ..BuildOptions::default() };
    options.pack.isa = isa;
    let samples = &samples[..samples.len().min(20)];
    let built = build(graph.clone(), samples, is_u8, &recipe, options, &|_, _| ()).map_err(failed)?;
    let file = ModelFile::new(&built.packed.bytes);
    let model = Model::parse(file.as_bytes()).map_err(failed)?;
    let zeros: Vec<Vec<i8>> = model.inputs().iter().map(|p| vec![0; model.tensor(p.tensor).len as usize]).collect();
    let run = run_on_core(&built.packed.bytes, &[zeros.clone(), zeros], core, true)?;
    Ok((built.packed.bytes, run))
}

/// Counts of a kernel's operators and what they took.
type Counted = BTreeMap<(String, u8), Vec<(Features, f64)>>;

/// Counts the calibration networks and writes the table of the core's instruction set.
fn fit(core: Core) -> Result<CostTable, ToolError> {
    let mut counted = Counted::new();
    // Matrices are read row by row in portable models; on cores, those of other widths become blocks of a wider one.
    let core_isa = core.isa();
    for (bits, isa) in [(8, core_isa), (4, core_isa), (2, core_isa), (OTHER, core_isa), (OTHER, Isa::Generic)] {
        for (name, graph) in [("convolutions", convolutions()?), ("other layers", others()?)] {
            eprintln!("{name} of {bits} bits on the {}", core.name());
            let mut random = Random::new(7, 0);
            let sample = |_| {
                let value = |p: &quantize::graph::Port| {
                    ArrayD::from_shape_simple_fn(IxDyn(graph.shape(p.tensor)), || random.normal())
                };
                graph.inputs.iter().map(value).collect::<Vec<_>>()
            };
            let samples: Vec<Vec<ArrayD<f32>>> = (0..4).map(sample).collect();
            let (bytes, run) = count(&graph, &samples, &vec![false; graph.inputs.len()], (bits, isa), core)?;
            let file = ModelFile::new(&bytes);
            let model = Model::parse(file.as_bytes()).map_err(failed)?;
            for ((_, op), instructions) in model.ops().zip(&run.layers) {
                let (name, own, features) = features(&model, &op);
                // Kernels without weights, and those that do not care, are counted once.
                let is_new = if isa == Isa::Generic { name.ends_with("_generic") } else { bits == 8 || own == bits };
                if is_new {
                    counted.entry((name, own)).or_default().push((features, *instructions as f64));
                }
            }
        }
    }
    let kernel = counted.iter().map(|((op, bits), rows)| {
        let [mac, output, patch, position, call] = least_squares(rows);
        Kernel { op: op.clone(), bits: *bits, mac, output, patch, position, call }
    });
    let table = CostTable { kernel: kernel.collect() };
    let path = root().join("quantize/targets/costs").join(core.isa().name()).with_extension("toml");
    let text = toml::to_string(&table).map_err(failed)?;
    let head = "# Instructions by what a kernel does; written by `cargo xtask bench cost`.\n\n";
    std::fs::write(&path, format!("{head}{text}")).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
    eprintln!("wrote {}", path.display());
    Ok(table)
}

/// Non-negative factors, by descent along one coordinate after another.
fn least_squares(rows: &[(Features, f64)]) -> Features {
    let rows: Vec<(Features, f64)> =
        rows.iter().map(|(f, y)| (f.map(|v| v / y.max(1.0).sqrt()), y.max(1.0).sqrt())).collect();
    let mut factors = [0.0; 5];
    for _ in 0..20_000 {
        for i in 0..5 {
            let (mut above, mut below) = (0.0, 1e-18);
            for (row, y) in &rows {
                let others: f64 = (0..5).filter(|&j| j != i).map(|j| factors[j] * row[j]).sum();
                above += row[i] * (y - others);
                below += row[i] * row[i];
            }
            factors[i] = (above / below).max(0.0);
        }
    }
    factors.map(|v| (v * 1e4).round() / 1e4)
}

/// Layers one after another.
struct Chain<'g> {
    graph: &'g mut Graph,
    at: TensorId,
    random: Random,
}

impl Chain<'_> {
    fn weights(&mut self, shape: &[usize]) -> ArrayD<f32> {
        let fan: usize = shape[1..].iter().product();
        let scale = (2.0 / fan.max(1) as f32).sqrt();
        let random = &mut self.random;
        ArrayD::from_shape_simple_fn(IxDyn(shape), || scale * random.normal())
    }

    fn push(&mut self, op: Op, inputs: &[TensorId]) -> Result<TensorId, ToolError> {
        let name = format!("{}{}", op.name(), self.graph.nodes.len());
        self.graph.push(name, op, inputs).map_err(failed)
    }

    fn then(&mut self, op: Op) -> Result<(), ToolError> {
        self.at = self.push(op, &[self.at])?;
        Ok(())
    }

    fn channels(&self) -> usize {
        self.graph.shape(self.at).last().copied().unwrap_or(1)
    }

    fn conv(&mut self, oc: usize, kernel: usize, stride: usize) -> Result<(), ToolError> {
        let weight = self.weights(&[oc, kernel, kernel, self.channels()]);
        let window = window(kernel, stride, kernel / 2);
        self.then(Op::Conv2d { window, groups: 1, weight, bias: vec![0.1; oc], clamp: Clamp::RELU })
    }

    fn depthwise(&mut self, kernel: usize, stride: usize) -> Result<(), ToolError> {
        let groups = self.channels();
        let weight = self.weights(&[groups, kernel, kernel, 1]);
        let window = window(kernel, stride, kernel / 2);
        self.then(Op::Conv2d { window, groups, weight, bias: vec![0.1; groups], clamp: Clamp::RELU })
    }

    fn linear(&mut self, n: usize) -> Result<(), ToolError> {
        let weight = self.weights(&[n, self.channels()]);
        self.then(Op::Linear { weight, bias: vec![0.1; n], clamp: Clamp::RELU })
    }

    fn end(self) {
        let name = format!("y{}", self.graph.outputs.len());
        self.graph.add_output(&name, self.at);
    }
}

fn window(kernel: usize, stride: usize, pad: usize) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], pad: [pad; 4] }
}

fn chain<'g>(graph: &'g mut Graph, shape: &[usize]) -> Chain<'g> {
    let (name, seed) = (format!("x{}", graph.inputs.len()), graph.inputs.len() as u64);
    let at = graph.add_input(&name, shape);
    Chain { graph, at, random: Random::new(3, seed) }
}

/// Convolutions of many shapes.
fn convolutions() -> Result<Graph, ToolError> {
    let mut graph = Graph::default();
    let chains: [(&[usize], &[(usize, usize, usize)]); 4] = [
        (
            &[1, 16, 16, 3],
            &[
                (16, 3, 1),
                (24, 1, 1),
                (8, 3, 1),
                (32, 3, 2),
                (16, 1, 1),
                (40, 3, 1),
                (12, 5, 1),
                (64, 1, 1),
                (32, 1, 2),
                (48, 3, 1),
                (20, 3, 2),
                (96, 1, 1),
                (16, 1, 1),
            ],
        ),
        (&[1, 11, 7, 5], &[(13, 3, 1), (7, 1, 1), (33, 3, 2), (9, 1, 1), (21, 3, 1)]),
        (&[1, 20, 20, 1], &[(8, 3, 2), (16, 3, 1), (16, 3, 1), (64, 1, 1), (10, 1, 1)]),
        (&[1, 18, 18, 12], &[(24, 3, 2), (56, 3, 2), (72, 3, 1), (48, 3, 1), (56, 1, 2)]),
    ];
    for (shape, layers) in chains {
        let mut chain = chain(&mut graph, shape);
        layers.iter().try_for_each(|&(oc, kernel, stride)| chain.conv(oc, kernel, stride))?;
        chain.end();
    }
    Ok(graph)
}

/// Depthwise and linear layers, sums, pools, means, softmax.
fn others() -> Result<Graph, ToolError> {
    let mut graph = Graph::default();
    let mut c = chain(&mut graph, &[1, 14, 14, 16]);
    for (kernel, stride, channels) in [(3, 1, 32), (3, 2, 24), (5, 1, 48), (3, 1, 8), (3, 2, 64), (5, 1, 20)] {
        c.depthwise(kernel, stride)?;
        c.conv(channels, 1, 1)?;
    }
    c.then(Op::Mean { axes: vec![1, 2] })?;
    c.end();
    for (inputs, layers) in [(64, vec![128, 40, 10]), (200, vec![24, 256, 16]), (400, vec![96, 144, 8, 100, 12])] {
        let mut c = chain(&mut graph, &[1, inputs]);
        layers.into_iter().try_for_each(|n| c.linear(n))?;
        c.then(Op::Softmax { axis: 1 })?;
        c.end();
    }
    for shape in [[1, 16, 16, 16], [1, 8, 8, 24], [1, 5, 7, 10]] {
        let mut c = chain(&mut graph, &shape);
        let x = c.at;
        c.conv(shape[3], 1, 1)?;
        c.at = c.push(Op::Binary { kind: BinaryKind::Add, clamp: Clamp::RELU }, &[x, c.at])?;
        c.then(Op::MaxPool(window(3, 1, 1)))?;
        c.then(Op::AveragePool { window: window(3, 1, 1), count_include_pad: false })?;
        c.then(Op::MaxPool(window(2, 2, 0)))?;
        c.then(Op::AveragePool { window: window(2, 1, 0), count_include_pad: true })?;
        c.then(Op::Mean { axes: vec![1, 2] })?;
        c.end();
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_found_again() {
        let truth = [1.5, 10.0, 0.0, 30.0, 400.0];
        let mut random = Random::new(1, 0);
        let rows: Vec<(Features, f64)> = (0..30)
            .map(|_| {
                let mut feature = |scale: usize| (1 + random.below(scale)) as f64;
                let f = [feature(100_000), feature(4_000), feature(50_000), feature(300), 1.0];
                (f, f.iter().zip(truth).map(|(a, b)| a * b).sum())
            })
            .collect();
        for (got, wanted) in least_squares(&rows).into_iter().zip(truth) {
            assert!((got - wanted).abs() <= 0.02 * wanted + 0.02, "{got} {wanted}");
        }
    }
}
