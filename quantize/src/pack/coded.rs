//! Which weights are coded, and where they are decoded to.
//!
//! Every matrix of weights is coded by itself, its rows being output channels (see [`crate::circuit`]); what is not smaller so stays raw. A budget of
//! predicted instructions is kept by coding the dearest matrices at lower levels.

use super::layout::stage;
use super::plan::{PlanOptions, worthwhile_tiles};
use super::precisions::Coarser;
use crate::circuit::weights::{Options, encode_with};
use crate::lower::{ConstantSpec, Program};
use pith::circuit::{Coded, Shape};
use pith::format::NONE;
use pith::format::op::Op;
use pith::format::stages::Fields;
use pith::format::tensor::Constant;
use pith::kernels::generic::Packed;
use pith::{Isa, Model, ops};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most bytes of a decoder's state and a row of weights that an operator with tiles may want.
const MAX_WORK_BYTES: usize = 4096;

/// Where coded weights are decoded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// Once at start, into RAM.
    Ram,
    /// Once, into flash.
    Flash,
    /// At every run, through a tile of scratch memory.
    Tile,
}

impl Residency {
    /// As a constant's record says it.
    pub fn code(self) -> u16 {
        match self {
            Residency::Ram => Constant::IN_RAM,
            Residency::Flash => Constant::IN_FLASH,
            Residency::Tile => Constant::IN_TILES,
        }
    }

    /// Of a coded constant, none of a raw one.
    pub fn of(constant: &Constant) -> Option<Residency> {
        let all = [Residency::Ram, Residency::Flash, Residency::Tile];
        all.into_iter().find(|residency| constant.is_coded() && constant.residency == residency.code())
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Residency::Ram => "ram",
            Residency::Flash => "flash",
            Residency::Tile => "tile",
        }
    }
}

/// How weights are coded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompressOptions {
    /// 0 for raw weights, 1 to 9 from fast to small.
    pub level: u8,
    /// Where they are decoded to.
    pub residency: Residency,
    /// Predicted instructions on a Cortex-M4 that decoding all of them may take: of a run in tiles, else once.
    pub max_instructions: Option<f64>,
}

impl CompressOptions {
    /// Raw weights.
    pub const NONE: CompressOptions = CompressOptions { level: 0, residency: Residency::Ram, max_instructions: None };

    /// Bytes of flash and of RAM that a model takes: its file and its arena, and what its weights decode to, wherever that lies.
    pub fn memory(&self, model: &pith::Model<'_>) -> (u64, u64) {
        let (file, arena) = (model.header().file_bytes as u64, model.arena_bytes() as u64);
        match self.residency {
            Residency::Ram => (file, arena + model.decoded_bytes() as u64),
            Residency::Flash => (file + model.decoded_bytes() as u64, arena),
            Residency::Tile => (file, arena),
        }
    }
}

/// An operator's weights as a matrix: rows of output channels.
pub(super) struct Matrix {
    pub weights: Vec<i8>,
    pub shape: Shape,
    pub bits: u8,
}

impl Matrix {
    /// None of an operator without weights or whose weights are not row-major.
    pub(super) fn of(program: &Program, op: &Op<'_>) -> Option<Matrix> {
        let constant = program.constants.get(op.weights()? as usize).filter(|c| is_row_major(c))?;
        let packed = Packed::new(&constant.bytes, constant.record.bits);
        let len = constant.record.len as usize;
        let (rows, positions) = match op {
            Op::Conv(c) | Op::Depthwise(c) | Op::ConvTranspose(c) => {
                (c.out_c as usize, c.kernel_h as usize * c.kernel_w as usize)
            }
            Op::Linear(l) => (l.n as usize, pixels(program, l.input, l.k as usize)),
            _ => return None,
        };
        let channels = len.checked_div(rows * positions)?;
        let at = |i: usize| match op {
            // In memory the taps come first.
            Op::Depthwise(_) => packed.get(i % positions * rows + i / positions),
            _ => packed.get(i),
        };
        let weights = (0..len).map(at).collect();
        Some(Matrix { weights, shape: Shape { rows, positions, channels }, bits: constant.record.bits })
    }

    /// In tiles the decoder's state and a row must fit the operator's scratch memory.
    fn code(&self, level: u8, residency: Residency) -> Vec<u8> {
        let mut options = Options::level(level);
        if residency == Residency::Tile {
            let row = self.shape.row().next_multiple_of(4);
            options.max_state_bytes = options.max_state_bytes.min(MAX_WORK_BYTES.saturating_sub(row));
        }
        encode_with(&self.weights, self.shape, self.bits, &options, &mut || ())
    }

    fn instructions(&self, code: &[u8]) -> f64 {
        let coded = Coded::new_checked(code, self.bits, self.weights.len());
        coded.map_or(0.0, |coded| coded.instructions_per_weight() as f64) * self.weights.len() as f64
    }
}

fn is_row_major(constant: &ConstantSpec) -> bool {
    let record = &constant.record;
    record.kind == Constant::KIND_WEIGHTS && !record.is_coded()
}

/// Pixels of the map whose elements a linear layer reads, 1 if it reads no map.
fn pixels(program: &Program, input: u16, k: usize) -> usize {
    let mut id = input as usize;
    while let Some(source) = program.tensors[id].alias_of {
        id = source;
    }
    let tensor = &program.tensors[id].record;
    match (tensor.rank, tensor.dims, tensor.len as usize == k) {
        (3, [h, w, ..], true) => h as usize * w as usize,
        _ => 1,
    }
}

/// What a matrix became.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub bytes: Vec<u8>,
    /// The constant of the file before that it refines, or [`NONE`].
    pub refines: u16,
}

/// The code of every operator's weights, none where `floor` (bytes that raw weights take in its place) is not undercut. `width` is that of what weights
/// of some bits are decoded to.
pub(super) fn encode_all(
    program: &Program,
    width: impl Fn(u8) -> u8,
    coarser: Option<&Coarser<'_>>,
    options: CompressOptions,
    floor: impl Fn(usize) -> Option<usize> + Sync,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Vec<Option<Code>> {
    let matrix = |op: &Op<'_>| Matrix::of(program, op).map(|m| Matrix { bits: width(m.bits), ..m });
    let matrices: Vec<Option<(Matrix, usize)>> =
        (0..program.ops.len()).map(|i| matrix(&program.ops[i].record).zip(floor(i))).collect();
    let total = matrices.iter().flatten().count();
    let smaller = |bytes: Vec<u8>, floor: usize| Some(Code { bytes, refines: NONE }).filter(|c| c.bytes.len() < floor);
    let mut codes: Vec<Option<Code>> = matrices
        .par_iter()
        .zip(&program.ops)
        .map(|(matrix, spec)| {
            let (matrix, floor) = matrix.as_ref()?;
            let alone = smaller(matrix.code(options.level, options.residency), *floor);
            let refined = coarser.and_then(|coarser| coarser.refine(&spec.name, matrix));
            progress("coding", total);
            let codes = [refined.filter(|c| c.bytes.len() < *floor), alone];
            codes.into_iter().flatten().min_by_key(|code| code.bytes.len())
        })
        .collect();
    let Some(budget) = options.max_instructions else { return codes };
    let mut levels = vec![options.level; codes.len()];
    loop {
        let costs: Vec<f64> = std::iter::zip(&matrices, &codes)
            .map(|(m, code)| m.as_ref().zip(code.as_ref()).map_or(0.0, |((m, _), code)| m.instructions(&code.bytes)))
            .collect();
        let dearest = (0..costs.len()).max_by(|&a, &b| costs[a].total_cmp(&costs[b]).then(b.cmp(&a)));
        let dearest = dearest.filter(|&i| costs[i] > 0.0 && costs.iter().sum::<f64>() > budget);
        let Some(i) = dearest else { return codes };
        levels[i] -= 1;
        codes[i] = matrices[i]
            .as_ref()
            .filter(|_| levels[i] > 0)
            .and_then(|(m, floor)| smaller(m.code(levels[i], options.residency), *floor));
    }
}

/// Why the coded weights of an operator cannot be decoded in tiles, if they cannot.
pub(super) fn refuses_tiles(op: &Op<'_>, weights: &ConstantSpec) -> Option<String> {
    match ops::tile_scratch_bytes(op, &weights.record, &weights.bytes) {
        Some([work, _]) if work <= MAX_WORK_BYTES => None,
        Some([work, _]) => Some(format!("the decoder wants {work} B, more than {MAX_WORK_BYTES}")),
        None if weights.record.kind == Constant::KIND_BLOCKS => {
            Some(format!("a block of weights is larger than a tile of {} B", ops::MAX_TILE_BYTES))
        }
        None => Some(format!("row-major weights are larger than a tile of {} B", ops::TILE_BYTES)),
    }
}

/// Raw weights that are smaller than what a coded constant decodes to, by the constant.
pub(super) type Smaller = BTreeMap<u16, ConstantSpec>;

/// Bytes of file that an operator's coded weights save; none if they are not coded.
fn saved(program: &Program, smaller: &Smaller, op: &Op<'_>) -> Option<usize> {
    let id = op.weights()?;
    let weights = &program.constants[id as usize];
    let own = (weights.decoded.len(), weights.record.kind);
    let (raw, kind) = smaller.get(&id).map_or(own, |spec| (spec.bytes.len(), spec.record.kind));
    // Raw blocks hold their output stage; beside code and row-major weights it is a constant.
    let stage = stage_of(op).filter(|_| kind == Constant::KIND_BLOCKS);
    let stage = stage.map_or(0, |id| stage_bytes(program, id));
    weights.record.is_coded().then(|| raw.saturating_sub(weights.bytes.len() + stage))
}

/// Leaves weights raw that cannot be decoded in tiles, or whose tiles take more memory than their code saves. Returns what is to be said of them; where
/// nobody asked for code, they are stored in more bits than asked for.
pub(super) fn leave_raw(
    program: &mut Program,
    smaller: &Smaller,
    plan: PlanOptions,
    isa: Isa,
    asked: bool,
) -> Vec<String> {
    let mut raw: Vec<(u16, String)> = Vec::new();
    for spec in &program.ops {
        let id = spec.record.weights().filter(|&id| program.constants[id as usize].record.is_in_tiles());
        let why = id.and_then(|id| refuses_tiles(&spec.record, &program.constants[id as usize]));
        raw.extend(id.zip(why));
    }
    raw.iter().for_each(|(id, _)| make_raw(program, smaller, *id));
    let mut reasons: Vec<&String> = raw.iter().map(|(_, why)| why).collect();
    reasons.dedup();
    let count = |why: &String| raw.iter().filter(|(_, other)| other == why).count();
    let mut notes: Vec<String> = reasons
        .iter()
        .map(|why| match asked {
            true => format!("{}: {why}; --decode ram or flash has no such limit", stay_raw(count(why))),
            false => format!("{}: {why}", stored_wider(count(why))),
        })
        .collect();
    let saved: Vec<Option<usize>> = program.ops.iter().map(|spec| saved(program, smaller, &spec.record)).collect();
    let tiled = worthwhile_tiles(program, plan, isa, &saved);
    let dear: Vec<usize> = (0..tiled.len()).filter(|&i| saved[i].is_some() && !tiled[i]).collect();
    if !dear.is_empty() {
        let bytes: usize = dear.iter().filter_map(|&i| saved[i]).sum();
        let what = if asked { stay_raw(dear.len()) } else { stored_wider(dear.len()) };
        notes.push(format!("{what}: tiles would take more RAM than the {bytes} B of file that they save"));
    }
    for i in dear {
        program.ops[i].record.weights().iter().for_each(|&id| make_raw(program, smaller, id));
    }
    notes
}

fn stay_raw(layers: usize) -> String {
    if layers == 1 { "1 layer stays raw".into() } else { format!("{layers} layers stay raw") }
}

fn stored_wider(layers: usize) -> String {
    let layers = if layers == 1 { "1 layer is".into() } else { format!("{layers} layers are") };
    layers + " stored in more bits, for which there are kernels"
}

/// The constant as it is without code, for all operators that name it.
fn make_raw(program: &mut Program, smaller: &Smaller, id: u16) {
    let constant = &mut program.constants[id as usize];
    if !constant.record.is_coded() {
        return;
    }
    if let Some(spec) = smaller.get(&id) {
        *constant = spec.clone();
    } else {
        constant.bytes = std::mem::take(&mut constant.decoded);
        let record = &mut constant.record;
        (record.encoding, record.residency) = (Constant::ENCODING_RAW, 0);
        record.bytes = constant.bytes.len() as u32;
    }
    if constant.record.kind == Constant::KIND_BLOCKS {
        let users = program.ops.iter_mut().filter(|spec| spec.record.weights() == Some(id));
        users.for_each(|spec| set_weights(&mut spec.record, id, true));
    }
}

/// Names an operator's weights; blocks that are raw bring their output stage.
pub(super) fn set_weights(op: &mut Op<'_>, id: u16, with_stage: bool) {
    let (weights, channels) = match op {
        Op::Conv(c) | Op::Depthwise(c) | Op::ConvTranspose(c) => (&mut c.weights, &mut c.channels),
        Op::Linear(l) => (&mut l.weights, &mut l.channels),
        _ => return,
    };
    *weights = id;
    if with_stage {
        *channels = NONE;
    }
}

/// The constant of an operator's output stage.
pub(super) fn stage_of(op: &Op<'_>) -> Option<u16> {
    match op {
        Op::Conv(c) => Some(c.channels),
        Op::Linear(l) => Some(l.channels),
        _ => None,
    }
}

/// A constant of output stages in few bits; none if that is not smaller, or does not hold them exactly.
fn packed(constant: &ConstantSpec) -> Option<Vec<u8>> {
    let (record, raw) = (&constant.record, &constant.bytes);
    if record.kind != Constant::KIND_CHANNELS || record.is_coded() {
        return None;
    }
    let n = record.len as usize;
    let stage = |i: usize| stage(raw, n, i);
    let fields = Fields::of(n, stage)?;
    let mut bytes = vec![0; fields.bytes(n)];
    fields.emit(n, stage, &mut bytes);
    Some(bytes).filter(|bytes| bytes.len() < raw.len())
}

/// Bytes that output stages take beside coded blocks.
pub(super) fn stage_bytes(program: &Program, id: u16) -> usize {
    let bytes = |constant: &ConstantSpec| packed(constant).map_or(constant.bytes.len(), |packed| packed.len());
    program.constants.get(id as usize).map_or(0, bytes)
}

/// Packs output stages: those of coded blocks lie where they are read while rows are decoded, those of other weights become what they were with the
/// weights, once. Beside weights in tiles that are no blocks they stay raw, as do those of other operators.
pub(super) fn pack_stages(program: &mut Program, residency: Residency) {
    for id in 0..program.constants.len() {
        let is_user = |mut op: Op<'_>| op.constants_mut().into_iter().flatten().any(|own| *own as usize == id);
        let users: Vec<Op<'_>> = program.ops.iter().map(|spec| spec.record).filter(|op| is_user(*op)).collect();
        let in_blocks = |op: &Op<'_>| {
            let weights = op.weights().map(|id| program.constants[id as usize].record);
            weights.is_some_and(|w| w.is_coded() && w.kind == Constant::KIND_BLOCKS)
        };
        let residency = if users.iter().all(in_blocks) { Residency::Tile } else { residency };
        let is_read_raw = |op: &Op<'_>| op.stages().is_none() || (residency == Residency::Tile && !in_blocks(op));
        if users.iter().any(is_read_raw) {
            continue;
        }
        let constant = &mut program.constants[id];
        if let Some(bytes) = packed(constant) {
            constant.decoded = std::mem::replace(&mut constant.bytes, bytes);
            constant.record.encoding = Constant::ENCODING_CODED;
            constant.record.residency = residency.code();
            constant.record.bytes = constant.bytes.len() as u32;
        }
    }
}

/// Decodes every coded constant through the runtime and compares; the first that differs, or why the model cannot be decoded.
pub(super) fn check(model: &Model<'_>, constants: &[ConstantSpec]) -> Result<(), String> {
    let mut scratch = vec![0; model.decode_scratch_bytes()];
    for (id, constant) in (0..).zip(constants).filter(|(_, c)| c.record.is_coded()) {
        let mut out = vec![0; model.decoded_len(id)];
        model.decode(id, &mut out, &mut scratch).map_err(|e| e.to_string())?;
        if out != constant.decoded {
            return Err(format!("constant {id} decodes to something else"));
        }
    }
    Ok(())
}
