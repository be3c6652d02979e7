//! The file header: 80 bytes that say what the file is and where its sections lie.

use bytemuck::{Pod, Zeroable};

/// First bytes of a model file. The packer writes sections in the order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`super::MAGIC`].
    pub magic: [u8; 4],
    /// [`super::VERSION`]; a reader accepts exactly its own.
    pub version: u16,
    /// Size of this struct.
    pub header_bytes: u16,
    /// Length of the whole file.
    pub file_bytes: u32,
    /// CRC-32 (ISO-HDLC) of the bytes from offset 16 to the end of the file; of a finer precision, of the checksum of the file before it and these.
    pub crc32: u32,
    /// Bits of features a reader must know: [`Header::CODED`], [`Header::SPARSE`], [`Header::REFINED`], [`Header::ASYMMETRIC`]; all others are
    /// reserved (see FORMAT.md).
    pub required_features: u32,
    /// Arena size that the plan needs.
    pub arena_bytes: u32,
    /// Offset of [`super::tensor::Tensor`] records.
    pub tensors_offset: u32,
    /// Offset of [`super::tensor::Constant`] records.
    pub constants_offset: u32,
    /// Offset of operator records.
    pub ops_offset: u32,
    /// Length of the operator section.
    pub ops_bytes: u32,
    /// Offset of [`super::tensor::Port`] records, inputs before outputs.
    pub ports_offset: u32,
    /// Offset of the text section: names and metadata, UTF-8.
    pub text_offset: u32,
    /// Length of the text section.
    pub text_bytes: u32,
    /// Offset of the weights section, which runs to the end of the file.
    pub weights_offset: u32,
    /// Number of tensors.
    pub tensor_count: u16,
    /// Number of constants.
    pub constant_count: u16,
    /// Number of operators.
    pub op_count: u16,
    /// Number of input ports.
    pub input_count: u8,
    /// Number of output ports.
    pub output_count: u8,
    /// Metadata (`key=value` lines) within the text section: offset from its start.
    pub metadata_offset: u32,
    /// Length of the metadata.
    pub metadata_bytes: u32,
    /// Bytes that coded constants which are decoded once take together, see [`crate::Model::decoded_bytes`].
    pub decoded_bytes: u32,
    /// CRC-32 (ISO-HDLC) of these bytes; 0 if there are none.
    pub decoded_crc32: u32,
}

impl Header {
    /// A required feature: some constants are coded.
    pub const CODED: u32 = 1;
    /// A required feature: some constants are block-sparse.
    pub const SPARSE: u32 = 2;
    /// A required feature: a finer precision of the file before it, see [`mod@crate::precisions`].
    pub const REFINED: u32 = 4;
    /// A required feature: some weights have zero points.
    pub const ASYMMETRIC: u32 = 8;
}
