//! A small writer of model files, so that these cases need nothing but the runtime.

use pith::Model;
use pith::circuit::refined::{self, Refined};
use pith::circuit::{Coder, Flat, Leaf, MODEL_NARROW, MODEL_REFINED, MODEL_UNIFORM, Shape, emit_header, rans};
use pith::format::blocks::{Layout, emit};
use pith::format::crc32::{crc32, crc32_behind};
use pith::format::header::Header;
use pith::format::op::{ConcatInput, Head, Op};
use pith::format::sparse;
use pith::format::stages::{Fields, raw_bytes};
use pith::format::tensor::{Constant, Port, Tensor};
use pith::format::{ALIGN, MAGIC, NONE, VERSION};

/// A model under construction. Tensors are placed one after another; nothing is reused.
#[derive(Clone, Default)]
pub struct Builder {
    pub tensors: Vec<Tensor>,
    pub constants: Vec<(Constant, Vec<u8>)>,
    pub ops: Vec<u8>,
    pub op_count: u16,
    pub inputs: Vec<u16>,
    pub outputs: Vec<u16>,
    pub arena: u32,
    /// How far the next tensor lies behind a multiple of four; other tensors will have others, if it is not 0.
    pub skew: u32,
    /// Bytes that resident coded constants take decoded, gaps included.
    pub decoded_bytes: usize,
    /// Files of coarser precisions that the model stands behind, to a multiple of 16.
    pub before: Vec<u8>,
    /// Some weights have zero points.
    pub is_asymmetric: bool,
}

impl Builder {
    pub fn tensor(&mut self, dims: &[usize], zero_point: i32) -> u16 {
        let offset = self.arena + self.skew;
        self.skew = self.skew * 3 % 4;
        let id = self.tensor_at(dims, zero_point, offset);
        self.arena = (offset + self.tensors[id as usize].len).next_multiple_of(4);
        id
    }

    pub fn tensor_at(&mut self, dims: &[usize], zero_point: i32, offset: u32) -> u16 {
        let mut all = [1; 6];
        all.iter_mut().zip(dims).for_each(|(to, &d)| *to = d as u16);
        let len: usize = dims.iter().product();
        let rank = dims.len() as u8;
        self.tensors.push(Tensor {
            bits: 8,
            rank,
            zero_point,
            scale: 0.5,
            offset,
            len: len as u32,
            dims: all,
            ..Tensor::default()
        });
        self.arena = self.arena.max((offset + len as u32).next_multiple_of(4));
        (self.tensors.len() - 1) as u16
    }

    pub fn constant(&mut self, kind: u8, bits: u8, len: usize, bytes: Vec<u8>) -> u16 {
        let record =
            Constant { kind, bits, len: len as u32, bytes: bytes.len() as u32, refines: NONE, ..Constant::default() };
        self.constants.push((record, bytes));
        (self.constants.len() - 1) as u16
    }

    pub fn weights(&mut self, values: &[i8], bits: u8) -> u16 {
        let mut bytes = vec![0u8; (values.len() * bits as usize).div_ceil(8)];
        for (i, &v) in values.iter().enumerate() {
            for b in 0..bits as usize {
                let at = i * bits as usize + b;
                bytes[at / 8] |= ((v as u8 >> b) & 1) << (at % 8);
            }
        }
        self.constant(Constant::KIND_WEIGHTS, bits, values.len(), bytes)
    }

    /// Asymmetric weights, each stored with the zero point of its channel added, and their zero points; without any, symmetric ones. `run` weights of a
    /// channel lie together.
    pub fn asymmetric(&mut self, values: &[i8], bits: u8, zeros: &[i8], run: usize) -> (u16, u16) {
        if zeros.is_empty() {
            return (self.weights(values, bits), NONE);
        }
        self.is_asymmetric = true;
        let stored = values.iter().enumerate().map(|(i, w)| w + zeros[i / run % zeros.len()]);
        let stored: Vec<i8> = stored.collect();
        (self.weights(&stored, bits), self.weights(zeros, 8))
    }

    pub fn channels(&mut self, entries: &[(i32, i32, u8)]) -> u16 {
        let mut bytes: Vec<u8> = entries.iter().flat_map(|e| e.0.to_le_bytes()).collect();
        bytes.extend(entries.iter().flat_map(|e| e.1.to_le_bytes()));
        bytes.extend(entries.iter().map(|e| e.2));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.constant(Constant::KIND_CHANNELS, 32, entries.len(), bytes)
    }

    /// The same in few bits where that holds them, and where such stages may be so: beside blocks in place, beside other weights if those are
    /// decoded once too.
    pub fn stages(&mut self, entries: &[(i32, i32, u8)], in_blocks: bool, residency: u16) -> u16 {
        let residency = if in_blocks { Constant::IN_TILES } else { residency };
        let n = entries.len();
        let fields = Fields::of(n, |i| entries[i]).filter(|_| in_blocks || residency != Constant::IN_TILES);
        let Some(fields) = fields else { return self.channels(entries) };
        let mut bytes = vec![0; fields.bytes(n)];
        fields.emit(n, |i| entries[i], &mut bytes);
        let id = self.constant(Constant::KIND_CHANNELS, 32, n, bytes);
        self.coded_constant(id, residency, raw_bytes(n));
        id
    }

    /// Row-major weights `[n, kernel_h, kernel_w, in_c]` with their output stage, in blocks.
    pub fn blocks(
        &mut self,
        layout: Layout,
        bits: u8,
        zero_point: i32,
        kernel: [usize; 3],
        weights: &[i8],
        zeros: &[i8],
        entries: &[(i32, i32, u8)],
    ) -> u16 {
        let (n, k) = (entries.len(), weights.len() / entries.len());
        let mut bytes = vec![0; layout.matrix_bytes(bits, n, k)];
        let weight = |row: usize, column: usize| weights[row * k + layout.column(kernel, column)];
        emit(layout, bits, (n, k), zero_point, zeros, weight, |row| entries[row], &mut bytes);
        self.is_asymmetric |= zeros.iter().any(|&zero| zero != 0);
        let id = self.constant(Constant::KIND_BLOCKS, bits, n * k, bytes);
        self.constants[id as usize].0.layout = layout.code();
        id
    }

    /// Row-major weights `[n, k]` with their output stage, block-sparse with blocks of `rows` by four.
    pub fn sparse(&mut self, rows: usize, zero_point: i32, weights: &[i8], entries: &[(i32, i32, u8)]) -> u16 {
        let (n, k) = (entries.len(), weights.len() / entries.len());
        let mut bytes = Vec::new();
        let weight = |row: usize, column: usize| weights[row * k + column];
        sparse::emit(rows, (n, k), zero_point, weight, |row| entries[row], |part| bytes.extend_from_slice(part));
        let id = self.constant(Constant::KIND_BLOCKS, 8, n * k, bytes);
        let record = &mut self.constants[id as usize].0;
        (record.encoding, record.layout) = (Constant::ENCODING_SPARSE, sparse::code(rows));
        id
    }

    /// Coded weights: the rows of a matrix, one output channel after another, for a layout or row-major. A depthwise filter's are its channels'.
    pub fn coded(&mut self, layout: Option<Layout>, bits: u8, weights: &[i8], shape: Shape, residency: u16) -> u16 {
        self.coded_as(layout, bits, code(weights, shape, bits), shape, residency)
    }

    /// Coded weights of `bits` bits, with zero points of rows if there are any, for wider blocks in tiles.
    pub fn narrow(
        &mut self,
        (layout, wide): (Layout, u8),
        bits: u8,
        zeros: &[i8],
        weights: &[i8],
        shape: Shape,
    ) -> u16 {
        self.coded_as(Some(layout), wide, narrow_code(weights, shape, bits, zeros), shape, Constant::IN_TILES)
    }

    /// Weights coded given those of constant `refines` of the file before, `coarse`.
    pub fn refined(
        &mut self,
        layout: Option<Layout>,
        bits: u8,
        (coarse, fine): (&[i8], &[i8]),
        shape: Shape,
        (residency, refines): (u16, u16),
        params: &refined::Params<'_>,
    ) -> u16 {
        let id = self.coded_as(layout, bits, refine(coarse, fine, shape, params), shape, residency);
        self.constants[id as usize].0.refines = refines;
        id
    }

    fn coded_as(&mut self, layout: Option<Layout>, bits: u8, code: Vec<u8>, shape: Shape, residency: u16) -> u16 {
        let kind = if layout.is_some() { Constant::KIND_BLOCKS } else { Constant::KIND_WEIGHTS };
        let len = shape.rows * shape.row();
        let id = self.constant(kind, bits, len, code);
        self.constants[id as usize].0.layout = layout.map_or(0, Layout::code);
        let bytes = match layout {
            Some(layout) => layout.matrix_bytes(bits, shape.rows, shape.row()),
            None => (len * bits as usize).div_ceil(8),
        };
        self.coded_constant(id, residency, bytes);
        id
    }

    fn coded_constant(&mut self, id: u16, residency: u16, decoded: usize) {
        let record = &mut self.constants[id as usize].0;
        (record.encoding, record.residency) = (Constant::ENCODING_CODED, residency);
        if residency != Constant::IN_TILES {
            self.decoded_bytes = self.decoded_bytes.next_multiple_of(ALIGN) + decoded;
        }
    }

    /// The record of a constant.
    pub fn record(&self, id: u16) -> Constant {
        self.constants[id as usize].0
    }

    pub fn u16s(&mut self, values: &[u16]) -> u16 {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(Constant::KIND_U16, 16, values.len(), bytes)
    }

    pub fn op(&mut self, op: Op<'_>) {
        self.op_with_scratch(op, 0);
    }

    pub fn op_with_scratch(&mut self, op: Op<'_>, scratch_bytes: u32) {
        let head = Head { scratch_offset: self.arena, scratch_bytes, ..Head::default() };
        self.arena = (self.arena + scratch_bytes).next_multiple_of(4);
        let start = self.ops.len();
        self.ops.resize(start + op.record_bytes(), 0);
        op.emit(head, &mut self.ops[start..]).unwrap();
        self.op_count += 1;
    }

    pub fn concat(&mut self, output: u16, outer: u32, inputs: &[ConcatInput]) {
        let concat = pith::format::op::Concat { output, input_count: inputs.len() as u16, outer };
        self.op(Op::Concat(concat, inputs));
    }

    /// The file, behind the coarser ones.
    pub fn finish(&self) -> Vec<u8> {
        let mut weights = Vec::new();
        let mut constants = Vec::new();
        for (record, bytes) in &self.constants {
            weights.resize(weights.len().next_multiple_of(4), 0);
            constants.push(Constant { offset: weights.len() as u32, ..*record });
            weights.extend(bytes);
        }
        let port = |&tensor: &u16| Port { tensor, scale: 0.5, name_bytes: 4, ..Port::default() };
        let ports: Vec<Port> = self.inputs.iter().chain(&self.outputs).map(port).collect();
        let mut bytes = vec![0; size_of::<Header>()];
        let mut section = |data: &[u8], align: usize| {
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            let offset = bytes.len() as u32;
            bytes.extend_from_slice(data);
            offset
        };
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            header_bytes: size_of::<Header>() as u16,
            arena_bytes: self.arena,
            tensors_offset: section(bytemuck::cast_slice(&self.tensors), 4),
            constants_offset: section(bytemuck::cast_slice(&constants), 4),
            ops_offset: section(&self.ops, 4),
            ops_bytes: self.ops.len() as u32,
            ports_offset: section(bytemuck::cast_slice(&ports), 4),
            text_offset: section(b"port", 4),
            text_bytes: 4,
            weights_offset: section(&weights, ALIGN),
            tensor_count: self.tensors.len() as u16,
            constant_count: constants.len() as u16,
            op_count: self.op_count,
            input_count: self.inputs.len() as u8,
            output_count: self.outputs.len() as u8,
            required_features: required_features(&constants)
                | if self.is_asymmetric { Header::ASYMMETRIC } else { 0 }
                | if self.before.is_empty() { 0 } else { Header::REFINED },
            decoded_bytes: self.decoded_bytes as u32,
            ..Header::default()
        };
        let mut header = Header { file_bytes: bytes.len() as u32, ..header };
        bytes[..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
        let mut bytes = [&self.before[..], &bytes].concat();
        seal(&mut bytes);
        if self.decoded_bytes > 0 {
            let mut decoded = Memory::new(self.decoded_bytes, 0);
            let mut file = Memory::of(&bytes);
            decode(&pith::precisions(file.bytes()).last().unwrap().expect("a valid model"), &mut decoded);
            header.decoded_crc32 = crc32(decoded.bytes());
            bytes[self.before.len()..][..size_of::<Header>()].copy_from_slice(bytemuck::bytes_of(&header));
            seal(&mut bytes);
        }
        bytes
    }
}

fn required_features(constants: &[Constant]) -> u32 {
    let has = |feature: u32, encoding: u8| if constants.iter().any(|c| c.encoding == encoding) { feature } else { 0 };
    has(Header::CODED, Constant::ENCODING_CODED) | has(Header::SPARSE, Constant::ENCODING_SPARSE)
}

/// Resident constants of a model, decoded.
pub fn decode<'d>(model: &Model<'d>, memory: &'d mut Memory) -> Model<'d> {
    let mut scratch = vec![0; model.decode_scratch_bytes()];
    model.decode_into(memory.bytes(), &mut scratch).expect("undamaged code")
}

/// Weights coded by the simplest model.
fn code(weights: &[i8], shape: Shape, bits: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    emit_header(MODEL_UNIFORM, shape, |byte| bytes.push(byte));
    push_numbers(&mut bytes, bits, weights);
    bytes
}

/// Weights in their own width, each row behind its zero point if there are any.
fn narrow_code(weights: &[i8], shape: Shape, bits: u8, zeros: &[i8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    emit_header(MODEL_NARROW, shape, |byte| bytes.push(byte));
    Flat { bits, shifted: !zeros.is_empty() }.emit(|byte| bytes.push(byte));
    let numbers = |(i, row): (usize, &[i8])| {
        let zero = zeros.get(i).copied();
        let row: Vec<i8> = row.iter().map(|w| w + zero.unwrap_or(0)).collect();
        zero.into_iter().chain(row)
    };
    let numbers: Vec<i8> = weights.chunks(shape.row()).enumerate().flat_map(numbers).collect();
    push_numbers(&mut bytes, bits, &numbers);
    bytes
}

/// Code of numbers of `bits` bits.
fn push_numbers(bytes: &mut Vec<u8>, bits: u8, numbers: &[i8]) {
    let mut buffer = vec![0; 2 * numbers.len() + 6];
    let mut coder = rans::Encoder::new(&mut buffer);
    let put = |coder: &mut rans::Encoder<'_>, &w: &i8| coder.put((w as i32 + (1 << (bits - 1))) as u32, 1, bits.into());
    numbers.iter().rev().for_each(|w| put(&mut coder, w).expect("room"));
    bytes.extend_from_slice(coder.finish().expect("room"));
}

/// Symbols that are known, and the slots that a model gives them.
struct Recorder {
    symbols: std::vec::IntoIter<i32>,
    intervals: Vec<(u32, u32, u32)>,
}

impl Coder for Recorder {
    fn code<L: Leaf>(&mut self, leaf: &L) -> i32 {
        let symbol = self.symbols.next().expect("a symbol for every leaf");
        let (start, freq) = leaf.interval(symbol);
        self.intervals.push((start, freq, L::BITS));
        symbol
    }
}

/// Fine weights coded given coarse ones; their ratios are not told.
fn refine(coarse: &[i8], fine: &[i8], shape: Shape, params: &refined::Params<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    emit_header(MODEL_REFINED, shape, |byte| bytes.push(byte));
    params.emit(|byte| bytes.push(byte));
    let symbols: Vec<i32> = fine.iter().map(|&w| w.into()).collect();
    let mut recorder = Recorder { symbols: symbols.into_iter(), intervals: Vec::new() };
    let mut state = vec![0; params.state_words()];
    let mut model = Refined::new(params, &mut state).expect("room");
    coarse.chunks(shape.row()).for_each(|row| model.row(&mut recorder, &mut row.to_vec()));
    let mut buffer = vec![0; 2 * fine.len() + 6];
    let mut coder = rans::Encoder::new(&mut buffer);
    recorder.intervals.iter().rev().for_each(|&(start, freq, bits)| coder.put(start, freq, bits).expect("room"));
    bytes.extend_from_slice(coder.finish().expect("room"));
    bytes
}

/// Writes the checksum, of a file of several precisions each one's as far as their lengths say where they are.
pub fn seal(bytes: &mut [u8]) {
    let (mut at, mut before) = (0, None);
    while let Some(file) = bytes.get_mut(at..).filter(|file| file.len() > 16) {
        let file_bytes = u32::from_le_bytes(*file[8..].first_chunk().expect("four bytes")) as usize;
        let end = if (80..file.len()).contains(&file_bytes) { file_bytes } else { file.len() };
        let crc = match before {
            Some(before) => crc32_behind(before, &file[16..end]),
            None => crc32(&file[16..end]),
        };
        file[12..16].copy_from_slice(&crc.to_le_bytes());
        (at, before) = (at + end.next_multiple_of(ALIGN), Some(crc));
    }
}

/// Memory at a multiple of 16.
pub struct Memory {
    words: Vec<u128>,
    len: usize,
}

impl Memory {
    pub fn new(len: usize, paint: u8) -> Memory {
        Memory { words: vec![u128::from_ne_bytes([paint; 16]); len.div_ceil(16)], len }
    }

    pub fn of(bytes: &[u8]) -> Memory {
        let mut memory = Memory::new(bytes.len(), 0);
        memory.bytes().copy_from_slice(bytes);
        memory
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

/// A generator that is the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// In `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }

    /// In `lo..=hi`.
    pub fn within(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.next() % (hi - lo + 1) as u64) as i64
    }

    /// Mostly anything, often an extreme.
    pub fn s8(&mut self) -> i8 {
        match self.below(8) {
            0 => -128,
            1 => 127,
            _ => self.next() as i8,
        }
    }

    pub fn weight(&mut self, bits: u8) -> i8 {
        let limit = 1i64 << (bits - 1);
        self.within(-limit, limit - 1) as i8
    }
}
