//! Program → bytes: memory plan, sections, checksum. The runtime itself checks the result.

mod asymmetric;
mod coded;
mod layout;
mod plan;
mod precisions;
mod sparse;

use crate::lower::{ConstantSpec, Program};
pub(crate) use asymmetric::zero_points;
pub use coded::{CompressOptions, Residency};
use layout::lay_out;
use pith::format::crc32::{crc32, crc32_behind};
use pith::format::header::Header;
use pith::format::op::{Head, Op};
use pith::format::tensor::Constant;
use pith::format::{ALIGN, MAGIC, VERSION};
use pith::{Isa, Model};
pub use plan::{Interval, Plan, PlanOptions, plan};
use precisions::Coarser;
pub use precisions::pack_precisions;
use std::path::Path;

/// A model file and what it is made of.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The file.
    pub bytes: Vec<u8>,
    /// The memory plan.
    pub plan: Plan,
    /// The program with its offsets.
    pub program: Program,
    /// What is to be said about operators whose weights stay raw though their code is smaller.
    pub notes: Vec<String>,
}

impl Packed {
    /// The file's checksum.
    fn checksum(&self) -> u32 {
        let header: Header = bytemuck::pod_read_unaligned(&self.bytes[..size_of::<Header>()]);
        header.crc32
    }
}

/// What the packer may leave out.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// Memory plan.
    pub plan: PlanOptions,
    /// What weights are laid out for; [`Isa::Generic`] leaves them row-major.
    pub isa: Isa,
    /// Leave operator names out of the file.
    pub strip_names: bool,
    /// How weights are coded.
    pub compress: CompressOptions,
    /// Store weights block-sparse where that is smaller and predicted to be faster; coded weights never are.
    pub sparse: bool,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            plan: PlanOptions::default(),
            isa: Isa::Generic,
            strip_names: false,
            compress: CompressOptions::NONE,
            sparse: true,
        }
    }
}

/// Why a program has no file.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A table is longer than its 16-bit count.
    #[error("{count} {what}; the file's limit is 65,534")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// The runtime refuses what was written, which is a bug of this crate.
    #[error("the packed model is not valid: {0}; please report this")]
    Invalid(pith::Error),
    /// The runtime decodes other weights than were coded, which is a bug of this crate.
    #[error("the coded weights are not what was coded: {0}; please report this, and build without --compress")]
    Coded(String),
    /// Several precisions in one file need other options.
    #[error("a file of several precisions: {0}")]
    Precisions(&'static str),
    /// More than 4 GiB.
    #[error("the packed model is larger than 4 GiB")]
    TooLarge,
}

/// Plans memory and writes the file. The same program gives the same bytes.
pub fn pack(program: Program, options: PackOptions) -> Result<Packed, PackError> {
    pack_visibly(program, options, &|_, _| ())
}

/// As [`pack`]; `progress` gets a step's name and how many there are of it.
pub fn pack_visibly(
    program: Program,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Packed, PackError> {
    pack_behind(None, program, options, progress)
}

/// As [`pack_visibly`], a finer precision behind coarser ones.
fn pack_behind(
    coarser: Option<&Coarser<'_>>,
    mut program: Program,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Packed, PackError> {
    let counts =
        [("tensors", program.tensors.len()), ("constants", program.constants.len()), ("operators", program.ops.len())];
    if let Some((what, count)) = counts.into_iter().find(|(_, n)| *n >= u16::MAX as usize) {
        return Err(PackError::TooMany { what, count });
    }
    for (what, count) in [("inputs", program.inputs.len()), ("outputs", program.outputs.len())] {
        if count > 255 {
            return Err(PackError::TooMany { what, count });
        }
    }
    let notes = lay_out(&mut program, coarser, options, progress);
    let (plan, scratch) = plan(&mut program, options.plan, options.isa);
    let mut text = String::new();
    let mut intern = |name: &str| {
        let offset = text.find(name).unwrap_or_else(|| {
            text.push_str(name);
            text.len() - name.len()
        });
        (offset as u32, name.len() as u32)
    };
    for port in program.inputs.iter_mut().chain(&mut program.outputs) {
        (port.record.name_offset, port.record.name_bytes) = intern(&port.name);
    }
    let mut ops = Vec::new();
    for (spec, (scratch_offset, scratch_bytes)) in program.ops.iter().zip(scratch) {
        let (name_offset, name_bytes) = if options.strip_names { (0, 0) } else { intern(&spec.name) };
        let head = Head {
            name_offset,
            name_bytes,
            scratch_offset: scratch_offset as u32,
            scratch_bytes: scratch_bytes as u32,
            ..Head::default()
        };
        let op = match spec.record {
            Op::Concat(concat, _) => Op::Concat(concat, &spec.concat),
            op => op,
        };
        let start = ops.len();
        ops.resize(start + op.record_bytes(), 0);
        if op.emit(head, &mut ops[start..]).is_none() {
            return Err(PackError::TooMany { what: "inputs of a concat", count: spec.concat.len() });
        }
    }
    let metadata: String = program.metadata.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
    let metadata_offset = text.len() as u32;
    text.push_str(&metadata);
    let weights = place_constants(&mut program.constants);

    let mut bytes = vec![0; size_of::<Header>()];
    let mut section = |data: &[u8], align: usize| {
        bytes.resize(bytes.len().next_multiple_of(align), 0);
        let offset = bytes.len();
        bytes.extend_from_slice(data);
        offset as u32
    };
    let tensors: Vec<_> = program.tensors.iter().map(|t| t.record).collect();
    let constants: Vec<_> = program.constants.iter().map(|c| c.record).collect();
    let ports: Vec<_> = program.inputs.iter().chain(&program.outputs).map(|p| p.record).collect();
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        header_bytes: size_of::<Header>() as u16,
        arena_bytes: plan.arena_bytes as u32,
        tensors_offset: section(bytemuck::cast_slice(&tensors), 4),
        constants_offset: section(bytemuck::cast_slice(&constants), 4),
        ops_offset: section(&ops, 4),
        ops_bytes: ops.len() as u32,
        ports_offset: section(bytemuck::cast_slice(&ports), 4),
        text_offset: section(text.as_bytes(), 4),
        text_bytes: text.len() as u32,
        weights_offset: section(&weights, ALIGN),
        tensor_count: tensors.len() as u16,
        constant_count: constants.len() as u16,
        op_count: program.ops.len() as u16,
        input_count: program.inputs.len() as u8,
        output_count: program.outputs.len() as u8,
        metadata_offset,
        metadata_bytes: metadata.len() as u32,
        ..Header::default()
    };
    let is_coded = constants.iter().any(Constant::is_coded);
    let file_bytes = u32::try_from(bytes.len()).map_err(|_| PackError::TooLarge)?;
    let is_sparse = constants.iter().any(|c| c.encoding == Constant::ENCODING_SPARSE);
    let is_asymmetric = program.ops.iter().any(|spec| asymmetric::has_zero_points(&spec.record, &program.constants));
    let feature = |used: bool, bit: u32| if used { bit } else { 0 };
    let required_features = feature(is_coded, Header::CODED)
        | feature(is_asymmetric, Header::ASYMMETRIC)
        | feature(is_sparse, Header::SPARSE)
        | feature(coarser.is_some(), Header::REFINED);
    let mut header = Header { file_bytes, required_features, decoded_bytes: decoded_bytes(&program), ..header };
    let before = coarser.map_or(&[][..], |coarser| coarser.file);
    seal(&mut bytes, &mut header, coarser);
    if is_coded {
        header.decoded_crc32 = check_coded(before, &bytes, &program)?;
        seal(&mut bytes, &mut header, coarser);
    }
    ModelFile::new(&[before, &bytes].concat()).finest().map_err(PackError::Invalid)?;
    Ok(Packed { bytes, plan, program, notes })
}

/// Writes the header with the file's checksum.
fn seal(bytes: &mut [u8], header: &mut Header, coarser: Option<&Coarser<'_>>) {
    bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(header));
    header.crc32 = match coarser {
        Some(coarser) => crc32_behind(coarser.checksum, &bytes[16..]),
        None => crc32(&bytes[16..]),
    };
    bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(header));
}

/// Bytes that resident constants take together when they are decoded.
fn decoded_bytes(program: &Program) -> u32 {
    let resident = program.constants.iter().filter(|c| c.record.is_resident());
    resident.fold(0, |end: usize, c| end.next_multiple_of(ALIGN) + c.decoded.len()) as u32
}

/// Decodes the file's weights as a device would and compares them with those that were coded; returns the checksum of resident ones.
fn check_coded(before: &[u8], bytes: &[u8], program: &Program) -> Result<u32, PackError> {
    let file = ModelFile::new(&[before, bytes].concat());
    let model = file.finest().map_err(PackError::Invalid)?;
    coded::check(&model, &program.constants).map_err(PackError::Coded)?;
    let mut memory = Arena::new(model.decoded_bytes(), 0xA5);
    let mut scratch = vec![0; model.decode_scratch_bytes()];
    model.decode_into(memory.bytes_mut(), &mut scratch).map_err(|e| PackError::Coded(e.to_string()))?;
    Ok(if model.decoded_bytes() == 0 { 0 } else { crc32(memory.bytes_mut()) })
}

/// Fills in offsets; raw weights lie at multiples of 16, everything else at multiples of 4.
fn place_constants(constants: &mut [ConstantSpec]) -> Vec<u8> {
    let mut section = Vec::new();
    for constant in constants {
        let record = &constant.record;
        let is_wide = matches!(record.kind, Constant::KIND_WEIGHTS | Constant::KIND_BLOCKS) && !record.is_coded();
        let align = if is_wide { ALIGN } else { 4 };
        section.resize(section.len().next_multiple_of(align), 0);
        constant.record.offset = section.len() as u32;
        section.extend_from_slice(&constant.bytes);
    }
    section
}

/// Bytes of a model file at the alignment that the runtime wants.
#[derive(Clone, Debug, Default)]
pub struct ModelFile {
    words: Vec<u128>,
    bytes: usize,
}

impl ModelFile {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> ModelFile {
        let mut words = vec![0u128; bytes.len().div_ceil(size_of::<u128>())];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        ModelFile { words, bytes: bytes.len() }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> std::io::Result<ModelFile> {
        Ok(ModelFile::new(&std::fs::read(path)?))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// The model, of several precisions the finest.
    pub fn finest(&self) -> Result<Model<'_>, pith::Error> {
        pith::precisions(self.as_bytes()).last().unwrap_or(Err(pith::Error::NotAModel))
    }
}

/// An arena at the alignment that the runtime wants.
#[derive(Clone, Debug)]
pub struct Arena(Vec<u128>, usize);

impl Arena {
    /// `bytes` of memory, filled with `paint`.
    pub fn new(bytes: usize, paint: u8) -> Arena {
        Arena(vec![u128::from_ne_bytes([paint; 16]); bytes.div_ceil(size_of::<u128>())], bytes)
    }

    /// Exactly as many bytes as were asked for.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..self.1]
    }
}
