//! A model file, checked once. After [`Model::parse`] no accessor can fail and no run can panic.

use crate::check;
use crate::error::Error;
use crate::format::crc32::{crc32, crc32_behind};
use crate::format::header::Header;
use crate::format::op::{Head, Op};
use crate::format::tensor::{Constant, Port, Tensor};
use crate::format::{ALIGN, MAGIC, VERSION};
use crate::uses;
use core::mem::offset_of;

/// A checked view over the bytes of a `.pith` file; copying it copies the view.
#[derive(Clone, Copy, Debug)]
pub struct Model<'m> {
    header: Header,
    tensors: &'m [Tensor],
    constants: &'m [Constant],
    ports: &'m [Port],
    ops: &'m [u8],
    text: &'m str,
    weights: &'m [u8],
    /// What resident constants decode to, empty before.
    decoded: &'m [u8],
    /// Files of coarser precisions, from the first to where this one begins; empty of the first.
    before: &'m [u8],
}

impl<'m> Model<'m> {
    /// Checks everything that a run relies on: lengths, checksum, every record, every shape, every memory range.
    ///
    /// `bytes` must start at a multiple of [`ALIGN`] (see [`crate::include_model!`]) and may be longer than the file.
    pub fn parse(bytes: &'m [u8]) -> Result<Model<'m>, Error> {
        Model::parse_using::<{ uses::ALL }>(bytes)
    }

    /// As [`Model::parse`], for models that use nothing beyond `USES` (see [`crate::uses`]): checks of other operators are not linked.
    pub fn parse_using<const USES: u64>(bytes: &'m [u8]) -> Result<Model<'m>, Error> {
        Model::parse_behind::<USES>(bytes, &[])
    }

    /// The model at the start of `bytes`, which follow the checked files of coarser precisions.
    pub(crate) fn parse_behind<const USES: u64>(bytes: &'m [u8], before: &'m [u8]) -> Result<Model<'m>, Error> {
        if bytes.as_ptr().align_offset(ALIGN) != 0 {
            return Err(Error::FileMisaligned);
        }
        let (header, bytes) = read_header::<USES>(bytes, before)?;
        let text = records(bytes, header.text_offset, header.text_bytes as usize, "text section")?;
        let model = Model {
            text: core::str::from_utf8(text).map_err(|_| Error::Header { what: "text section is not UTF-8" })?,
            before,
            ..sections(header, bytes)?
        };
        if header.ops_offset % 4 != 0 {
            return Err(Error::Header { what: "operators section is not aligned" });
        }
        check::model::<USES>(&model)?;
        Ok(model)
    }

    /// The model in bytes that [`Model::parse`] accepted before, by other code: a build script or a test, say. Names and metadata are empty.
    ///
    /// A program that embeds its model saves the checks with it, 3 to 6 KB of code on a microcontroller.
    ///
    /// # Safety
    ///
    /// [`Model::parse_using`] accepts the same bytes with the `USES` of whatever runs the model; `bytes` begin at a multiple of [`ALIGN`].
    #[allow(unsafe_code, reason = "a contract for callers; nothing in here is unsafe")]
    pub unsafe fn trusted(bytes: &'m [u8]) -> Model<'m> {
        Model::unchecked(bytes, &[])
    }

    /// As [`Model::trusted`], behind files of coarser precisions.
    fn unchecked(bytes: &'m [u8], before: &'m [u8]) -> Model<'m> {
        let header = bytes.get(..size_of::<Header>()).map_or_else(Header::default, bytemuck::pod_read_unaligned);
        let file = bytes.get(..header.file_bytes as usize).unwrap_or(bytes);
        let none = Model {
            header,
            tensors: &[],
            constants: &[],
            ports: &[],
            ops: &[],
            text: "",
            weights: &[],
            decoded: &[],
            before: &[],
        };
        Model { before, ..sections(header, file).unwrap_or(none) }
    }

    /// The next coarser precision, without its text; none of the coarsest.
    pub(crate) fn coarser(&self) -> Option<Model<'m>> {
        let (before, file) = last_file(self.before)?;
        Some(Model::unchecked(file, before))
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes that an arena must have.
    pub fn arena_bytes(&self) -> usize {
        self.header.arena_bytes as usize
    }

    /// Activations.
    pub fn tensors(&self) -> &'m [Tensor] {
        self.tensors
    }

    /// The tensor of this id, a default (empty) one if there is none.
    pub fn tensor(&self, id: u16) -> Tensor {
        self.tensors.get(id as usize).copied().unwrap_or_default()
    }

    /// Constants.
    pub fn constants(&self) -> &'m [Constant] {
        self.constants
    }

    /// The constant of this id, a default (empty) one if there is none.
    pub fn constant(&self, id: u16) -> Constant {
        self.constants.get(id as usize).copied().unwrap_or_default()
    }

    /// Bytes of a constant as operators read them: those of a coded one are empty unless it has been decoded (see [`Model::decode_into`]).
    pub fn constant_bytes(&self, id: u16) -> &'m [u8] {
        if self.constant(id).is_coded() { self.resident_bytes(id) } else { self.stored_bytes(id) }
    }

    /// Bytes of a constant in a program for models that use `USES`.
    pub(crate) fn weights_bytes<const USES: u64>(&self, id: u16) -> &'m [u8] {
        if uses::decodes_once(USES) { self.constant_bytes(id) } else { self.stored_bytes(id) }
    }

    /// The model with what its resident constants decode to.
    pub(crate) fn over<'d>(&self, decoded: &'d [u8]) -> Model<'d>
    where
        'm: 'd,
    {
        Model { decoded, ..*self }
    }

    /// What resident constants were decoded to, empty before.
    pub(crate) fn decoded(&self) -> &'m [u8] {
        self.decoded
    }

    /// Stored bytes of a constant, empty if there is none.
    pub fn stored_bytes(&self, id: u16) -> &'m [u8] {
        let constant = self.constant(id);
        let start = constant.offset as usize;
        start.checked_add(constant.bytes as usize).and_then(|end| self.weights.get(start..end)).unwrap_or(&[])
    }

    /// Operators in execution order.
    pub fn ops(&self) -> Ops<'m> {
        self.ops_using()
    }

    /// As [`Model::ops`], of a model that [`Model::parse_using`] accepts: it ends where `USES` has no such operator.
    pub fn ops_using<const USES: u64>(&self) -> Ops<'m, USES> {
        Ops { rest: self.ops }
    }

    /// What the caller feeds.
    pub fn inputs(&self) -> &'m [Port] {
        self.ports.get(..self.header.input_count as usize).unwrap_or(&[])
    }

    /// What the caller reads.
    pub fn outputs(&self) -> &'m [Port] {
        self.ports.get(self.header.input_count as usize..).unwrap_or(&[])
    }

    /// Name of an operator, empty where names were stripped.
    pub fn op_name(&self, head: &Head) -> &'m str {
        self.text(head.name_offset, head.name_bytes)
    }

    /// Name of an input or output, as in the ONNX file.
    pub fn port_name(&self, port: &Port) -> &'m str {
        self.text(port.name_offset, port.name_bytes)
    }

    /// Free text, `key=value` lines.
    pub fn metadata(&self) -> &'m str {
        self.text(self.header.metadata_offset, self.header.metadata_bytes)
    }

    fn text(&self, offset: u32, bytes: u32) -> &'m str {
        let start = offset as usize;
        start.checked_add(bytes as usize).and_then(|end| self.text.get(start..end)).unwrap_or("")
    }

    /// Bytes of the weights section.
    pub fn weights_section_bytes(&self) -> usize {
        self.weights.len()
    }
}

/// Iterator over operator records.
#[derive(Clone, Debug)]
pub struct Ops<'m, const USES: u64 = { uses::ALL }> {
    rest: &'m [u8],
}

impl<'m, const USES: u64> Iterator for Ops<'m, USES> {
    type Item = (Head, Op<'m>);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, op) = Op::parse_using::<USES>(self.rest)?;
        self.rest = self.rest.get(head.record_bytes as usize..)?;
        Some((head, op))
    }
}

impl<const USES: u64> Ops<'_, USES> {
    /// Whether bytes are left that are no record.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Where the file after the one at the start of `bytes` begins.
pub(crate) fn next_file(bytes: &[u8]) -> usize {
    uses::u32_at(bytes, offset_of!(Header, file_bytes)).max(size_of::<Header>()).saturating_add(ALIGN - 1)
        & !(ALIGN - 1)
}

/// Checked files, split before the last of them.
fn last_file(files: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        let next = at + next_file(files.get(at..)?);
        if next >= files.len() {
            return files.split_at_checked(at).filter(|(_, last)| !last.is_empty());
        }
        at = next;
    }
}

/// The header, and the file without what follows it in the buffer.
fn read_header<'m, const USES: u64>(bytes: &'m [u8], before: &[u8]) -> Result<(Header, &'m [u8]), Error> {
    let truncated = |needed| Error::Truncated { needed, given: bytes.len() };
    if !bytes.starts_with(&MAGIC) && bytes.len() >= MAGIC.len() {
        return Err(Error::NotAModel);
    }
    let head = bytes.get(..size_of::<Header>()).ok_or(truncated(size_of::<Header>()))?;
    let header: Header = bytemuck::pod_read_unaligned(head);
    if header.version != VERSION {
        return Err(Error::Version { found: header.version });
    }
    // Its checksum begins with theirs.
    if header.required_features & Header::REFINED != 0 && before.is_empty() {
        return Err(Error::Header { what: "a finer precision is read behind the coarser ones" });
    }
    let file = bytes.get(..header.file_bytes as usize).ok_or(truncated(header.file_bytes as usize))?;
    let checked = file.get(16..).filter(|_| file.len() >= size_of::<Header>());
    let checked = checked.ok_or(Error::Header { what: "file length" })?;
    let computed = match last_file(before) {
        Some((_, last)) if uses::decodes_once(USES) => {
            crc32_behind(uses::u32_at(last, offset_of!(Header, crc32)) as u32, checked)
        }
        _ => crc32(checked),
    };
    if computed != header.crc32 {
        return Err(Error::Checksum { stored: header.crc32, computed });
    }
    if header.header_bytes as usize != size_of::<Header>() {
        return Err(Error::Header { what: "header length" });
    }
    let coded = if uses::decodes(USES) { Header::CODED } else { 0 };
    let refined = if before.is_empty() { 0 } else { Header::REFINED };
    let asymmetric = if uses::has_asymmetric(USES) { Header::ASYMMETRIC } else { 0 };
    let known = asymmetric | coded | refined | if uses::has_sparse(USES) { Header::SPARSE } else { 0 };
    if header.required_features & !known != 0 {
        return Err(Error::Unsupported { what: "a required feature of this model" });
    }
    if !uses::decodes(USES) && [header.decoded_bytes, header.decoded_crc32] != [0; 2] {
        return Err(Error::Header { what: "bytes to decode" });
    }
    Ok((header, file))
}

/// The sections of a file, apart from its text.
#[inline(always)]
fn sections(header: Header, bytes: &[u8]) -> Result<Model<'_>, Error> {
    let ports = header.input_count as usize + header.output_count as usize;
    Ok(Model {
        header,
        tensors: records(bytes, header.tensors_offset, header.tensor_count as usize, "tensors section")?,
        constants: records(bytes, header.constants_offset, header.constant_count as usize, "constants section")?,
        ports: records(bytes, header.ports_offset, ports, "ports section")?,
        ops: records(bytes, header.ops_offset, header.ops_bytes as usize, "operators section")?,
        text: "",
        weights: bytes
            .get(header.weights_offset as usize..)
            .filter(|_| (header.weights_offset as usize).is_multiple_of(ALIGN))
            .ok_or(Error::Header { what: "weights section" })?,
        decoded: &[],
        before: &[],
    })
}

/// `count` records at `offset`, inside of the file, behind the header and aligned.
fn records<'m, T: bytemuck::AnyBitPattern>(
    bytes: &'m [u8],
    offset: u32,
    count: usize,
    what: &'static str,
) -> Result<&'m [T], Error> {
    let start = offset as usize;
    let len = count.checked_mul(size_of::<T>());
    len.and_then(|len| start.checked_add(len))
        .filter(|_| start >= size_of::<Header>())
        .and_then(|end| bytes.get(start..end))
        .and_then(|bytes| bytemuck::try_cast_slice(bytes).ok())
        .ok_or(Error::Header { what })
}
