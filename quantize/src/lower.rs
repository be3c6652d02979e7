//! Quantized graph → program: the records that the device executes, not yet placed in memory.

use pith::format::{op, tensor};

/// A program in execution order. Records name tensors and constants by index; offsets are still zero.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Activations; `offset` is filled in by [`crate::pack`].
    pub tensors: Vec<TensorSpec>,
    /// Weights and tables.
    pub constants: Vec<ConstantSpec>,
    /// Operators.
    pub ops: Vec<OpSpec>,
    /// Inputs of the model.
    pub inputs: Vec<PortSpec>,
    /// Outputs of the model.
    pub outputs: Vec<PortSpec>,
    /// Free text, `key=value`.
    pub metadata: Vec<(String, String)>,
}

/// An activation tensor.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// For reports and `eval --layers`: the float graph's tensor name.
    pub name: String,
    /// The record.
    pub record: tensor::Tensor,
    /// Tensor that this one shares memory with because it only has another shape.
    pub alias_of: Option<usize>,
}

/// A constant and its bytes as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstantSpec {
    /// The record; `offset` is filled in by [`crate::pack`].
    pub record: tensor::Constant,
    /// `record.bytes` bytes.
    pub bytes: Vec<u8>,
}

/// An operator.
#[derive(Clone, Debug)]
pub struct OpSpec {
    /// The float graph's node name.
    pub name: String,
    /// The record; a `Concat`'s inputs stand in `concat`.
    pub record: op::Op<'static>,
    /// Inputs of a `Concat`, else empty.
    pub concat: Vec<op::ConcatInput>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Shape of the output for tables.
    pub out_shape: Vec<usize>,
}

/// A port of the model.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// The name in the ONNX file.
    pub name: String,
    /// The record; text offsets are filled in by [`crate::pack`].
    pub record: tensor::Port,
}
