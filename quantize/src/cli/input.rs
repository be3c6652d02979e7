//! Arguments that several verbs share, and models as they come: ONNX or packed.

use super::Failure;
use crate::build::{input_slots, output_slots, prepend_preprocess};
use crate::data::{self, Layout, Set, Slot};
use crate::execute;
use crate::graph::{Graph, simplify};
use crate::onnx;
use crate::pack::ModelFile;
use crate::recipe::Preprocess;
use std::path::Path;

/// From the set's numbers to the ONNX input.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct PreprocessArgs {
    /// How images lie in the set [default: by shape]
    #[arg(long)]
    layout: Option<Layout>,
    /// Factor of raw values: the input is (x * SCALE - MEAN) / STD; 1/255 is a number too
    #[arg(long, value_parser = number)]
    scale: Option<f64>,
    /// One value, or one per channel
    #[arg(long, value_delimiter = ',', value_parser = number, allow_hyphen_values = true)]
    mean: Option<Vec<f64>>,
    /// One value, or one per channel
    #[arg(long, value_delimiter = ',', value_parser = number)]
    std: Option<Vec<f64>>,
}

impl PreprocessArgs {
    /// The recipe's values, overridden by what was given.
    pub(super) fn over(&self, base: &Preprocess) -> Preprocess {
        Preprocess {
            scale: self.scale.unwrap_or(base.scale),
            mean: self.mean.clone().unwrap_or_else(|| base.mean.clone()),
            std: self.std.clone().unwrap_or_else(|| base.std.clone()),
            layout: self.layout.or(base.layout),
        }
    }
}

/// A decimal number or a fraction.
pub(super) fn number(text: &str) -> Result<f64, String> {
    let parse = |t: &str| t.trim().parse::<f64>().map_err(|_| format!("'{text}' is neither a number nor a fraction"));
    let value = match text.split_once('/') {
        Some((a, b)) => parse(a)? / parse(b)?,
        None => parse(text)?,
    };
    if value.is_finite() { Ok(value) } else { Err(format!("'{text}' is not finite")) }
}

/// Whether a path names a packed model: by its first bytes, else by its extension.
pub(super) fn is_packed(path: &Path) -> bool {
    let mut magic = [0; 4];
    let begins = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut magic));
    (begins.is_ok() && magic == pith::format::MAGIC) || path.extension().is_some_and(|e| e == "pith")
}

/// Whether a path names a supernet: an archive.
pub(super) fn is_supernet(path: &Path) -> bool {
    let mut magic = [0; 4];
    let begins = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut magic));
    begins.is_ok() && magic == *b"PK\x03\x04"
}

/// A packed model's bytes.
pub(super) fn read_packed(path: &Path) -> Result<ModelFile, Failure> {
    ModelFile::read(path).map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))
}

/// A view over a packed model (of several precisions: of the one with these bits, else of the finest) whose coded weights are undamaged; the message
/// names the file, and the operator whose weights they are.
pub(super) fn parse_packed<'m>(path: &Path, file: &'m ModelFile, bits: Option<u8>) -> Result<pith::Model<'m>, Failure> {
    let shown = path.display();
    let model = super::precisions::choose(path, file, bits)?;
    model.verify(&mut vec![0; model.decode_scratch_bytes()]).map_err(|e| {
        let index = if let pith::Error::Constant { index, .. } = e { u16::try_from(index).ok() } else { None };
        let names = model.ops().filter(|(_, op)| index.is_some() && op.weights() == index);
        let name = names.map(|(head, _)| model.op_name(&head)).find(|name| !name.is_empty());
        Failure::new(format!("{shown}: {}{e}", name.map_or(String::new(), |name| format!("weights of {name}: "))))
    })?;
    Ok(model)
}

/// An ONNX network that takes raw data.
pub(super) fn read_onnx(path: &Path, preprocess: &Preprocess) -> Result<Graph, Failure> {
    Ok(prepend_preprocess(simplify(onnx::import(path)?), preprocess)?)
}

/// Inputs and the number of classes of either kind of model.
pub(super) struct Ports {
    pub inputs: Vec<Slot>,
    pub outputs: Vec<Slot>,
}

impl Ports {
    pub(super) fn of_graph(graph: &Graph) -> Ports {
        Ports { inputs: input_slots(graph), outputs: output_slots(graph) }
    }

    pub(super) fn of_model(model: &pith::Model<'_>) -> Ports {
        Ports { inputs: execute::input_slots(model), outputs: execute::output_slots(model) }
    }

    /// Elements of the first output.
    pub(super) fn classes(&self) -> usize {
        self.outputs.first().map_or(0, |o| o.shape.iter().product())
    }

    pub(super) fn load(&self, path: &Path, layout: Option<Layout>) -> Result<Set, Failure> {
        Ok(data::load(path, &self.inputs, layout, self.classes())?)
    }
}

/// The preprocessing that a packed model's metadata notes.
pub(super) fn noted_preprocess(model: &pith::Model<'_>) -> Preprocess {
    let value = |key: &str| {
        let line = model.metadata().lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or("").to_string()
    };
    let list = |key: &str| value(key).split(',').filter_map(|v| v.parse().ok()).collect();
    Preprocess {
        scale: value("preprocess.scale").parse().unwrap_or(1.0),
        mean: list("preprocess.mean"),
        std: list("preprocess.std"),
        layout: match value("preprocess.layout").as_str() {
            "nhwc" => Some(Layout::Nhwc),
            "nchw" => Some(Layout::Nchw),
            _ => None,
        },
    }
}

/// At most `count` items, evenly spaced.
pub(super) fn spaced<T>(items: Vec<T>, count: usize) -> Vec<T> {
    let n = items.len();
    let count = count.clamp(1, n.max(1));
    let mut wanted = (0..count).map(|i| i * n / count).peekable();
    items.into_iter().enumerate().filter(|(i, _)| wanted.next_if_eq(i).is_some()).map(|(_, item)| item).collect()
}
