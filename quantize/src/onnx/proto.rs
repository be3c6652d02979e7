//! Protobuf messages as values: models, tensors, attributes.

use super::ImportError;
use super::consts::Constant;
use ndarray::{ArrayD, IxDyn};
use tract_onnx::pb::{self, AttributeProto, NodeProto, TensorProto};
use tract_onnx::prelude::Framework;

/// The model message, if `bytes` are one.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<pb::ModelProto, ImportError> {
    let not_onnx = |what: String| ImportError::NotOnnx { name: name.into(), what };
    if let Some(what) = other_format(bytes) {
        return Err(not_onnx(what.into()));
    }
    let model = tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]).map_err(|e| not_onnx(format!("{e:#}")))?;
    match &model.graph {
        Some(graph) if !graph.output.is_empty() => Ok(model),
        _ => Err(not_onnx("it holds no graph with outputs".into())),
    }
}

/// What else people keep networks in, and the way from there.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let known: [(usize, &[u8], &str); 4] = [
        (0, &pith::format::MAGIC, "it is a .pith file, already built; give the network that it was built from"),
        (4, b"TFL3", "it is a TensorFlow Lite model; convert it with python -m tf2onnx.convert --tflite"),
        (0, b"\x89HDF", "it is HDF5, as Keras writes; convert the model with tf2onnx.convert.from_keras"),
        (
            0,
            b"PK\x03\x04",
            "it is a zip archive: a supernet, which `build` and `search` take, or a model of PyTorch or Keras, which torch.onnx.export or tf2onnx export",
        ),
    ];
    let is = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    known.into_iter().find(|&(at, magic, _)| is(at, magic)).map(|(.., what)| what)
}

/// The elements of a tensor message as 64-bit floats (exact for every type that is accepted, integers up to 2^53).
pub(super) fn tensor(proto: &TensorProto) -> Result<Constant, String> {
    use pb::tensor_proto::DataType;
    if proto.data_location == Some(1) || !proto.external_data.is_empty() {
        return Err("its data lie in another file; save the model with embedded weights".into());
    }
    let shape: Vec<usize> = proto.dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("its shape overflows")?;
    let raw = &proto.raw_data;
    let kind = DataType::try_from(proto.data_type).map_err(|_| format!("unknown element type {}", proto.data_type))?;
    let ints = || proto.int32_data.iter().map(|&v| v as f64).collect::<Vec<_>>();
    let values: Vec<f64> = match kind {
        DataType::Float if raw.is_empty() => proto.float_data.iter().map(|&v| v as f64).collect(),
        DataType::Float => words(raw, |b| f32::from_le_bytes(b) as f64),
        DataType::Double if raw.is_empty() => proto.double_data.clone(),
        DataType::Double => words(raw, f64::from_le_bytes),
        DataType::Float16 if raw.is_empty() => {
            proto.int32_data.iter().map(|&v| half::f16::from_bits(v as u16).to_f64()).collect()
        }
        DataType::Float16 => words(raw, |b| half::f16::from_le_bytes(b).to_f64()),
        DataType::Bfloat16 => words(raw, |b| half::bf16::from_le_bytes(b).to_f64()),
        DataType::Int64 if raw.is_empty() => proto.int64_data.iter().map(|&v| v as f64).collect(),
        DataType::Int64 => words(raw, |b| i64::from_le_bytes(b) as f64),
        DataType::Int32 | DataType::Int8 | DataType::Uint8 | DataType::Int16 | DataType::Uint16 | DataType::Bool
            if raw.is_empty() =>
        {
            ints()
        }
        DataType::Int32 => words(raw, |b| i32::from_le_bytes(b) as f64),
        DataType::Int16 => words(raw, |b| i16::from_le_bytes(b) as f64),
        DataType::Uint16 => words(raw, |b| u16::from_le_bytes(b) as f64),
        DataType::Int8 => words(raw, |b| i8::from_le_bytes(b) as f64),
        DataType::Uint8 | DataType::Bool => words(raw, |b| u8::from_le_bytes(b) as f64),
        other => return Err(format!("element type {} is not supported", other.as_str_name())),
    };
    if values.len() != count {
        return Err(format!("{} elements for shape {shape:?}", values.len()));
    }
    let is_float = matches!(kind, DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16);
    if is_float && values.iter().any(|v| v.is_nan()) {
        return Err("it holds NaN; export the model again from a healthy checkpoint".into());
    }
    let values = ArrayD::from_shape_vec(IxDyn(&shape), values).map_err(|e| e.to_string())?;
    Ok(Constant { values, is_float })
}

fn words<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    raw.chunks_exact(N).map(|chunk| <[u8; N]>::try_from(chunk).map_or(0.0, &read)).collect()
}

/// Attributes of a node, by name.
pub(super) trait Attributes {
    /// The attribute, if present.
    fn find(&self, name: &str) -> Option<&AttributeProto>;

    /// An integer attribute.
    fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |a| a.i)
    }

    /// A float attribute.
    fn float(&self, name: &str, default: f32) -> f32 {
        self.find(name).map_or(default, |a| a.f)
    }

    /// A list of integers.
    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.find(name).map(|a| a.ints.clone())
    }

    /// A string attribute.
    fn string(&self, name: &str, default: &str) -> String {
        self.find(name).map_or(default.into(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }
}

impl Attributes for NodeProto {
    fn find(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named() {
        let refused = |bytes: &[u8]| decode("net", bytes).unwrap_err().to_string();
        assert!(refused(b"PITH\x01\0\0\0").contains("net is not an ONNX model (it is a .pith file"));
        assert!(refused(b"\x1c\0\0\0TFL3\0\0").contains("tf2onnx.convert --tflite"));
        assert!(refused(b"\x89HDF\r\n\x1a\n").contains("Keras"));
        assert!(refused(b"PK\x03\x04rest").contains("torch.onnx.export"));
        assert_eq!(other_format(b""), None);
        // How ONNX files of PyTorch and tf2onnx begin.
        assert_eq!(other_format(b"\x08\x08\x12\x07pytorch"), None);
        assert_eq!(other_format(b"\x08\x07\x12\x07tf2onnx"), None);
    }
}
