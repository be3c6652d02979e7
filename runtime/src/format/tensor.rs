//! Records of the values that operators read and write.

use super::MAX_RANK;
use bytemuck::{Pod, Zeroable};

/// A value in the arena: int8, row-major, batch axis dropped (`[h, w, c]`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Tensor {
    /// [`Tensor::ACTIVATION`]; 1 is reserved for state that persists between runs.
    pub kind: u8,
    /// Bits of one element; 8 in version 1.
    pub bits: u8,
    /// Number of axes in `dims`, at most six.
    pub rank: u8,
    /// Zero.
    pub reserved: u8,
    /// The integer that stands for real zero, in [`Tensor::ZERO_POINTS`]. Only tensors that are read by convolutions, linear layers,
    /// tables and softmax alone may have one outside of int8.
    pub zero_point: i32,
    /// Real value of one step: `real = scale * (q - zero_point)`.
    pub scale: f32,
    /// Byte offset in the arena.
    pub offset: u32,
    /// Number of elements, which is the product of `dims`.
    pub len: u32,
    /// Shape, unused axes 1.
    pub dims: [u16; MAX_RANK],
}

impl Tensor {
    /// A value that lives within one run.
    pub const ACTIVATION: u8 = 0;
    /// Zero points for which `q - zero_point` fits 16 bits with room to spare.
    pub const ZERO_POINTS: core::ops::RangeInclusive<i32> = -16_384..=16_383;
}

/// A constant in the weights section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Constant {
    /// One of the associated `ENCODING` values.
    pub encoding: u8,
    /// One of the associated `KIND` values.
    pub kind: u8,
    /// Bits of one element: 2 ..= 8 for weights, 8, 16 or 32 else.
    pub bits: u8,
    /// For [`Constant::KIND_BLOCKS`] the code of a [`super::blocks::Layout`], or that of [`super::sparse`]; else 0.
    pub layout: u8,
    /// Number of elements (for [`Constant::KIND_CHANNELS`]: of channels; for [`Constant::KIND_BLOCKS`]: of weights without padding).
    pub len: u32,
    /// Offset from the start of the weights section, a multiple of 4 (the packer aligns weights to 16).
    pub offset: u32,
    /// Stored length in bytes.
    pub bytes: u32,
    /// Of refined weights, the coarser constant in the file before (see [`mod@crate::precisions`]); else [`super::NONE`].
    pub refines: u16,
    /// Of coded constants where they are decoded to, one of the associated values from [`Constant::IN_RAM`] on; else 0.
    pub residency: u16,
}

impl Constant {
    /// Elements as they are: `bits` each, consecutive, element `i` at bits `i * bits ..` of a little-endian bit stream.
    pub const ENCODING_RAW: u8 = 0;
    /// Weights as [`crate::circuit`] codes them. The other fields mean what they mean of the decoded constant; blocks are coded without their
    /// output stage, which stays in the operator's own constant. Of [`Constant::KIND_CHANNELS`]: stages as [`super::stages`] packs them.
    pub const ENCODING_CODED: u8 = 1;
    /// Weights of 8 bits in blocks of which only some are stored, see [`super::sparse`].
    pub const ENCODING_SPARSE: u8 = 2;
    /// Decoded once, into RAM, see [`crate::Model::decode_into`].
    pub const IN_RAM: u16 = 0;
    /// Decoded once, into flash, see [`crate::Model::decode_with`].
    pub const IN_FLASH: u16 = 1;
    /// Decoded at every run, a tile of [`crate::ops::TILE_BYTES`] after another. Output stages: read where they lie, while coded blocks are decoded.
    pub const IN_TILES: u16 = 2;
    /// Signed integer weights of 2 to 8 bits, two's complement.
    pub const KIND_WEIGHTS: u8 = 0;
    /// Per-channel output stage, structure of arrays: `bias: [i32; len]`, `multiplier: [i32; len]`, `shift: [u8; len]`, `0..3` zeros.
    pub const KIND_CHANNELS: u8 = 1;
    /// 256 int8 values, indexed by `q + 128`.
    pub const KIND_TABLE_S8: u8 = 2;
    /// Unsigned 16-bit values (tables of `Softmax` and `Resize`).
    pub const KIND_U16: u8 = 3;
    /// Weights of a convolution or linear layer with their output stage, see [`super::blocks`].
    pub const KIND_BLOCKS: u8 = 4;

    /// Rows of a block if it is block-sparse.
    pub const fn sparse_rows(&self) -> Option<usize> {
        if self.encoding == Constant::ENCODING_SPARSE { super::sparse::rows_of(self.layout) } else { None }
    }

    /// Whether it is decoded at all.
    pub const fn is_coded(&self) -> bool {
        self.encoding == Constant::ENCODING_CODED
    }

    /// Whether it is decoded at every run.
    pub const fn is_in_tiles(&self) -> bool {
        self.is_coded() && self.residency == Constant::IN_TILES
    }

    /// Whether it is decoded once, before the first run.
    pub const fn is_resident(&self) -> bool {
        self.is_coded() && self.residency != Constant::IN_TILES
    }
}

/// An input or output of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Port {
    /// Index of the tensor.
    pub tensor: u16,
    /// Where the ONNX tensor's axes went: [`Port::AS_ONNX`] or [`Port::NCHW`].
    pub layout: u8,
    /// Type of the raw data that the scale and zero point describe: [`Port::REAL`] or [`Port::U8`].
    pub raw: u8,
    /// Name: offset in the text section.
    pub name_offset: u32,
    /// Name: length.
    pub name_bytes: u32,
    /// `raw = scale * (q - zero_point)`, in the user's units: preprocessing (`--scale`, `--mean`, `--std`) is already folded in.
    pub scale: f32,
    /// See `scale`.
    pub zero_point: i32,
}

impl Port {
    /// The tensor has the ONNX tensor's axes (batch dropped).
    pub const AS_ONNX: u8 = 0;
    /// The tensor is `[h, w, c]`, the ONNX tensor was `[n, c, h, w]`.
    pub const NCHW: u8 = 1;
    /// Raw data are real numbers.
    pub const REAL: u8 = 0;
    /// Raw data are bytes 0..=255 and `q = raw - 128`: a device stores `pixel ^ 0x80`.
    pub const U8: u8 = 1;
}

impl Port {
    /// The int8 nearest to a raw value, half rounded up; what lies outside (or is no number) goes to the nearest bound.
    pub fn quantize(&self, raw: f32) -> i8 {
        let steps = (raw as f64 / self.scale as f64 + 0.5).clamp(-65_536.0, 65_536.0);
        let truncated = steps as i32;
        let floor = truncated - i32::from(steps < truncated as f64);
        floor.saturating_add(self.zero_point).clamp(-128, 127) as i8
    }

    /// The raw value of an int8.
    pub fn dequantize(&self, q: i8) -> f32 {
        self.scale * (q as i32).saturating_sub(self.zero_point) as f32
    }
}
