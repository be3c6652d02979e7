//! Sets of inputs and labels.
//!
//! A set is an `.npz` with `x` (`[n, ...]`) and optional `y` (integer labels `[n]`, or float targets), an `.npy` that is `x`
//! alone, or golden arrays `in0`, `in1`, ... with `out0`, ... Samples may lack axes of length 1 or have extra ones; images may
//! lie as `[h, w, c]` or `[c, h, w]` whatever the network wants.

use crate::npy::{self, NpyError};
use ndarray::{ArrayD, Axis, IxDyn};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How images lie in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Rows, columns, channels.
    Nhwc,
    /// Channels, rows, columns.
    Nchw,
}

/// An input of a network, as far as data care.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Name in the ONNX file.
    pub name: String,
    /// Shape that the network is fed with, batch axis included, channels last where `is_nchw`.
    pub shape: Vec<usize>,
    /// The ONNX input is `[n, c, h, w]` while `shape` is `[n, h, w, c]`.
    pub is_nchw: bool,
}

/// Labels or targets.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class of every sample.
    Classes(Vec<usize>),
    /// Wanted outputs, first axis = sample, one array per output.
    Values(Vec<ArrayD<f32>>),
}

/// A set that fits a network.
#[derive(Clone, Debug)]
pub struct Set {
    /// Inputs of every sample, in the network's axes, raw (before preprocessing).
    pub samples: Vec<Vec<ArrayD<f32>>>,
    /// Whether the raw data of each input are bytes.
    pub is_u8: Vec<bool>,
    /// Labels, if the set has any.
    pub targets: Option<Targets>,
}

/// What is wrong with a set.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum DataError {
    #[error("{file}: {source}")]
    Npy { file: String, source: NpyError },
    #[error("{file}: no array '{name}' (found: {found}); a set holds 'x' [n, ...] and optionally 'y'")]
    Missing { file: String, name: String, found: String },
    #[error("{file}: array '{name}' has samples of shape {given:?}, input '{input}' takes {expected:?}{hint}")]
    Shape { file: String, name: String, given: Vec<usize>, input: String, expected: Vec<usize>, hint: &'static str },
    #[error("{file}: array '{name}' holds {value} in sample {sample}; clean the data")]
    NotFinite { file: String, name: String, value: f32, sample: usize },
    #[error("{file}: array '{name}' holds no samples")]
    Empty { file: String, name: String },
    #[error("{file}: array '{name}' has {given} entries for {expected} samples")]
    Count { file: String, name: String, given: usize, expected: usize },
    #[error("{file}: array 'y' holds the label {label} in sample {sample}; labels are integers in 0..{classes}")]
    Label { file: String, label: f32, sample: usize, classes: usize },
}

/// Reads a set for a network with these inputs; `classes` is the number of values of its first output.
pub fn load(path: &Path, slots: &[Slot], layout: Option<Layout>, classes: usize) -> Result<Set, DataError> {
    let file = path.display().to_string();
    let arrays = npy::read(path).map_err(|source| DataError::Npy { file: file.clone(), source })?;
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a);
    let mut inputs = Vec::new();
    for (i, slot) in slots.iter().enumerate() {
        let numbered = format!("in{i}");
        let named = if i == 0 && find("x").is_some() { "x".to_string() } else { numbered };
        let named = if find(&slot.name).is_some() { slot.name.clone() } else { named };
        let array = find(&named).ok_or_else(|| DataError::Missing {
            file: file.clone(),
            name: if i == 0 { "x".into() } else { named.clone() },
            found: arrays.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let samples = split(&file, &named, &array.values, slot, layout)?;
        inputs.push((named, samples, array.kind == "u1"));
    }
    let n = inputs.first().map_or(0, |(_, samples, _)| samples.len());
    if let Some((name, samples, _)) = inputs.iter().find(|(_, samples, _)| samples.len() != n) {
        return Err(DataError::Count { file, name: name.clone(), given: samples.len(), expected: n });
    }
    let targets = match find("y") {
        Some(y) => Some(labels(&file, y, n, classes)?),
        None => golden(&file, &arrays, n)?,
    };
    let is_u8 = inputs.iter().map(|(_, _, is_u8)| *is_u8).collect();
    let mut columns: Vec<_> = inputs.into_iter().map(|(_, samples, _)| samples.into_iter()).collect();
    let samples = (0..n).map(|_| columns.iter_mut().filter_map(Iterator::next).collect()).collect();
    Ok(Set { samples, is_u8, targets })
}

/// Most classes of a network that is made for a set.
const MOST_CLASSES: usize = 100_000;

/// Shape `[h, w, c]` of a set's pictures, `[n, h, w]`, `[n, h, w, c]` or `[n, c, h, w]`, and the number of classes of its labels: what a
/// network that is trained from scratch is made for. Without a layout, up to four channels come first only if they stand there.
pub fn picture_and_classes(path: &Path, layout: Option<Layout>) -> Result<([usize; 3], usize), DataError> {
    let file = path.display().to_string();
    let arrays = npy::read(path).map_err(|source| DataError::Npy { file: file.clone(), source })?;
    let find = |name: &str| {
        arrays.iter().find(|(n, _)| n == name).map(|(_, a)| &a.values).ok_or_else(|| DataError::Missing {
            file: file.clone(),
            name: name.into(),
            found: arrays.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "),
        })
    };
    let picture = match *find("x")?.shape() {
        [_, h, w] => [h, w, 1],
        [_, c, h, w] if layout == Some(Layout::Nchw) || (layout.is_none() && c <= 4 && w > 4) => [h, w, c],
        [_, h, w, c] => [h, w, c],
        ref other => {
            return Err(DataError::Shape {
                file,
                name: "x".into(),
                given: other.to_vec(),
                input: "image".into(),
                expected: vec![0, 0, 0],
                hint: ": pictures [n, h, w] or [n, h, w, c]",
            });
        }
    };
    let largest = |best: (usize, f32), (i, &label): (usize, &f32)| if label > best.1 { (i, label) } else { best };
    let (sample, label) = find("y")?.iter().enumerate().fold((0, 0.0), largest);
    match label as usize {
        class if class < MOST_CLASSES => Ok((picture, class + 1)),
        _ => Err(DataError::Label { file, label, sample, classes: MOST_CLASSES }),
    }
}

fn labels(file: &str, y: &npy::Array, n: usize, classes: usize) -> Result<Targets, DataError> {
    let given = y.values.shape().first().copied().unwrap_or(0);
    if given != n {
        return Err(DataError::Count { file: file.into(), name: "y".into(), given, expected: n });
    }
    if y.kind.starts_with('f') && y.values.len() != n {
        return Ok(Targets::Values(vec![y.values.clone()]));
    }
    if y.values.len() != n {
        return Err(DataError::Count { file: file.into(), name: "y".into(), given: y.values.len(), expected: n });
    }
    let valid = |(sample, &label): (usize, &f32)| {
        let fits = label >= 0.0 && label.fract() == 0.0 && (label as usize) < classes;
        fits.then_some(label as usize).ok_or(DataError::Label { file: file.into(), label, sample, classes })
    };
    Ok(Targets::Classes(y.values.iter().enumerate().map(valid).collect::<Result<_, _>>()?))
}

/// `out0`, `out1`, ... of a golden file.
fn golden(file: &str, arrays: &[(String, npy::Array)], n: usize) -> Result<Option<Targets>, DataError> {
    let mut outputs = Vec::new();
    while let Some((name, array)) = arrays.iter().find(|(name, _)| *name == format!("out{}", outputs.len())) {
        let given = array.values.shape().first().copied().unwrap_or(0);
        if given != n {
            return Err(DataError::Count { file: file.into(), name: name.clone(), given, expected: n });
        }
        outputs.push(array.values.clone());
    }
    Ok((!outputs.is_empty()).then_some(Targets::Values(outputs)))
}

/// Samples of an array, brought into the slot's axes.
fn split(
    file: &str,
    name: &str,
    array: &ArrayD<f32>,
    slot: &Slot,
    layout: Option<Layout>,
) -> Result<Vec<ArrayD<f32>>, DataError> {
    if array.ndim() == 0 || array.is_empty() {
        return Err(DataError::Empty { file: file.into(), name: name.into() });
    }
    // One sample without a leading axis is a set of one.
    let long = |shape: &[usize]| shape.iter().copied().filter(|&d| d > 1).collect::<Vec<_>>();
    let mut array = array.view();
    let whole = long(array.shape());
    if array.shape()[0] != 1 && arrangement(array.shape(), slot, layout).is_some() && whole == long(&slot.shape) {
        array = array.insert_axis(Axis(0));
    }
    let per_sample = &array.shape()[1..];
    let steps = arrangement(per_sample, slot, layout).ok_or_else(|| DataError::Shape {
        file: file.into(),
        name: name.into(),
        given: per_sample.to_vec(),
        input: slot.name.clone(),
        expected: slot.onnx_shape(),
        hint: if slot.shape.len() == 4 { " (either image layout will do; --layout says which)" } else { "" },
    })?;
    array
        .outer_iter()
        .enumerate()
        .map(|(i, sample)| {
            if let Some(&value) = sample.iter().find(|v| !v.is_finite()) {
                return Err(DataError::NotFinite { file: file.into(), name: name.into(), value, sample: i });
            }
            Ok(steps.apply(sample.iter().copied().collect()))
        })
        .collect()
}

/// Reshape, then permute, to the slot's shape.
struct Arrangement {
    shape: Vec<usize>,
    perm: Vec<usize>,
}

impl Arrangement {
    fn apply(&self, values: Vec<f32>) -> ArrayD<f32> {
        let array = ArrayD::from_shape_vec(IxDyn(&self.shape), values).unwrap_or_default();
        array.permuted_axes(IxDyn(&self.perm)).as_standard_layout().into_owned()
    }
}

/// How a sample of shape `given` becomes the slot's; none if it does not fit.
fn arrangement(given: &[usize], slot: &Slot, layout: Option<Layout>) -> Option<Arrangement> {
    let long = |shape: &[usize]| shape.iter().copied().filter(|&d| d > 1).collect::<Vec<_>>();
    let straight = Arrangement { shape: slot.shape.clone(), perm: (0..slot.shape.len()).collect() };
    let &[n, h, w, c] = slot.shape.as_slice() else {
        return (long(given) == long(&slot.shape)).then_some(straight);
    };
    let planar = Arrangement { shape: vec![n, c, h, w], perm: vec![0, 2, 3, 1] };
    let fits = |a: &Arrangement| long(given) == long(&a.shape);
    // The network's own layout comes first where both would fit.
    let order = match layout {
        Some(Layout::Nhwc) => vec![straight],
        Some(Layout::Nchw) => vec![planar],
        None if slot.is_nchw => vec![planar, straight],
        None => vec![straight, planar],
    };
    order.into_iter().find(fits)
}

impl Slot {
    /// The shape in the ONNX file's axes.
    pub fn onnx_shape(&self) -> Vec<usize> {
        match (self.is_nchw, self.shape.as_slice()) {
            (true, &[n, h, w, c]) => vec![n, c, h, w],
            _ => self.shape.clone(),
        }
    }

    /// A value in the slot's axes, in the ONNX file's.
    pub fn to_onnx(&self, value: &ArrayD<f32>) -> ArrayD<f32> {
        match (self.is_nchw, value.ndim()) {
            (true, 4) => value.view().permuted_axes(IxDyn(&[0, 3, 1, 2])).as_standard_layout().into_owned(),
            _ => value.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(shape: &[usize], is_nchw: bool) -> Slot {
        Slot { name: "image".into(), shape: shape.to_vec(), is_nchw }
    }

    #[test]
    fn unit_axes_and_layouts() {
        let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let grey = slot(&[1, 28, 28, 1], true);
        for given in [&[28, 28][..], &[1, 28, 28], &[28, 28, 1], &[1, 28, 28, 1]] {
            assert!(arrangement(given, &grey, None).is_some(), "{given:?}");
        }
        assert!(arrangement(&[28, 27], &grey, None).is_none());
        let image = slot(&[1, 2, 4, 3], true);
        let planar = arrangement(&[3, 2, 4], &image, None).unwrap().apply(count(24));
        assert_eq!(planar[[0, 1, 2, 0]], 6.0);
        assert_eq!(image.to_onnx(&planar).iter().copied().collect::<Vec<_>>(), count(24));
        assert_eq!(arrangement(&[2, 4, 3], &image, None).unwrap().apply(count(24))[[0, 0, 1, 2]], 5.0);
        assert!(arrangement(&[3, 2, 4], &image, Some(Layout::Nhwc)).is_none());
    }
}
