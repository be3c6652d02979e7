//! A coded constant: what model, what shape, then the model's parameters and the code.
//!
//! | part | content |
//! |---|---|
//! | model | u8, one of the `MODEL` values |
//! | rows | varint: output channels |
//! | positions | varint: kernel_h * kernel_w; the rest of a row's length is channels |
//! | parameters | of the model |
//! | code | see [`super::rans`], to the end |
//!
//! A varint has seven bits a byte, lowest first, and the highest bit set in all bytes but its last.

use super::classes::{self, Classes};
use super::predictive::{self, Predictive};
use super::rans;
use super::refined::{self, Refined};

/// Every value equally probable; no parameters.
pub const MODEL_UNIFORM: u8 = 0;

/// See [`classes`].
pub const MODEL_CLASSES: u8 = 1;

/// See [`predictive`].
pub const MODEL_PREDICTIVE: u8 = 2;

/// Given a coarser constant, see [`refined`].
pub const MODEL_REFINED: u8 = 3;

/// Every value of a narrower width equally probable: what raw weights of any width take, for kernels of a wider one.
pub const MODEL_NARROW: u8 = 4;

/// How the weights of a constant are meant: `[rows, positions, channels]`. In the order of decoding; [`Coded`] says nothing about where a
/// constant keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Output channels.
    pub rows: usize,
    /// Taps of a kernel, 1 for linear layers.
    pub positions: usize,
    /// Input channels, 1 for depthwise filters.
    pub channels: usize,
}

impl Shape {
    /// Weights of a row.
    pub fn row(&self) -> usize {
        self.positions * self.channels
    }
}

/// A model and its parameters.
#[derive(Clone, Copy, Debug)]
enum Params<'a> {
    Uniform,
    Narrow(Flat),
    Classes(classes::Params),
    Predictive(predictive::Params),
    Refined(refined::Params<'a>),
}

/// A coded constant with a checked header.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    shape: Shape,
    bits: u8,
    params: Params<'a>,
    code: &'a [u8],
}

impl<'a> Coded<'a> {
    /// Reads the header of a constant of `len` weights of `bits` bits, or says what is wrong.
    pub fn new_checked(bytes: &'a [u8], bits: u8, len: usize) -> Result<Coded<'a>, &'static str> {
        Coded::read(bytes, bits, len, |model, shape, rest| match model {
            MODEL_UNIFORM => Ok(Some(Params::Uniform)),
            MODEL_CLASSES => Ok(classes::Params::parse(rest).map(Params::Classes)),
            MODEL_PREDICTIVE => Ok(predictive::Params::parse(rest, shape, bits).map(Params::Predictive)),
            MODEL_REFINED => Ok(refined::Params::parse(rest).map(Params::Refined)),
            MODEL_NARROW => Ok(Flat::parse(rest, bits).map(Params::Narrow)),
            _ => Err("coded weights: model (it needs a newer runtime)"),
        })
    }

    /// As [`Coded::new_checked`] of models whose values are equally probable. A program that needs no more links less.
    pub fn new_flat_checked(bytes: &'a [u8], bits: u8, len: usize) -> Result<Coded<'a>, &'static str> {
        Coded::read(bytes, bits, len, |model, _, rest| match model {
            MODEL_UNIFORM => Ok(Some(Params::Uniform)),
            MODEL_NARROW => Ok(Flat::parse(rest, bits).map(Params::Narrow)),
            _ => Err("coded weights: model (this program was built for others)"),
        })
    }

    #[inline(always)]
    fn read(
        bytes: &'a [u8],
        bits: u8,
        len: usize,
        params: impl FnOnce(u8, Shape, &mut &'a [u8]) -> Result<Option<Params<'a>>, &'static str>,
    ) -> Result<Coded<'a>, &'static str> {
        let mut rest = bytes;
        let model = *rest.split_off_first().ok_or("coded weights: no header")?;
        let rows = varint(&mut rest).ok_or("coded weights: rows")?;
        let positions = varint(&mut rest).ok_or("coded weights: positions")?;
        let channels = rows.checked_mul(positions).filter(|&n| n > 0 && len.is_multiple_of(n)).map(|n| len / n);
        let channels = channels.filter(|&c| c > 0).ok_or("coded weights: shape")?;
        if !(2..=8).contains(&bits) {
            return Err("coded weights: bits");
        }
        let shape = Shape { rows, positions, channels };
        let params = params(model, shape, &mut rest)?.ok_or("coded weights: parameters")?;
        rans::Decoder::new(rest).ok_or("coded weights: code")?;
        Ok(Coded { shape, bits, params, code: rest })
    }

    /// Shape of the weights.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Name of the model.
    pub fn model(&self) -> &'static str {
        match &self.params {
            Params::Uniform => "uniform",
            Params::Narrow(_) => "narrow",
            Params::Classes(_) => "classes",
            Params::Predictive(_) => "predictive",
            Params::Refined(_) => "refined",
        }
    }

    /// Whether its rows are decoded from those of a coarser constant.
    pub fn is_refined(&self) -> bool {
        matches!(self.params, Params::Refined(_))
    }

    /// Words of memory that a decoder works in.
    pub fn state_words(&self) -> usize {
        match &self.params {
            Params::Uniform | Params::Narrow(_) => 0,
            Params::Classes(params) => params.state_words(),
            Params::Predictive(params) => params.state_words(self.shape),
            Params::Refined(params) => params.state_words(),
        }
    }

    /// Instructions that decoding a weight takes on a Cortex-M4, about.
    pub fn instructions_per_weight(&self) -> u32 {
        match &self.params {
            Params::Uniform | Params::Narrow(_) => FLAT_INSTRUCTIONS_PER_WEIGHT,
            Params::Classes(params) => params.instructions_per_weight(self.shape),
            Params::Predictive(params) => params.instructions_per_weight(self.shape),
            Params::Refined(_) => refined::INSTRUCTIONS_PER_WEIGHT,
        }
    }

    /// As [`Coded::decoder`], of refined weights; none of others.
    pub fn refiner<'s>(&self, state: &'s mut [u32]) -> Option<Refiner<'a, 's>> {
        let Params::Refined(params) = &self.params else { return None };
        Some(Refiner { coder: rans::Decoder::new(self.code)?, model: Refined::new(params, state)? })
    }

    /// A decoder before the first row; none if `state` has fewer than [`Coded::state_words`] words, or of refined weights.
    pub fn decoder<'s>(&self, state: &'s mut [u32]) -> Option<Decoder<'a, 's>> {
        let mut coder = rans::Decoder::new(self.code)?;
        let model = match &self.params {
            Params::Uniform | Params::Narrow(_) => Model::Flat(self.flat()?),
            Params::Classes(params) => Model::Classes(Classes::new(params, state)?),
            Params::Predictive(params) => Model::Predictive(Predictive::new(params, self.shape, state, &mut coder)?),
            Params::Refined(_) => return None,
        };
        Some(Decoder { coder, model })
    }

    /// The model, if all of its values are equally probable.
    fn flat(&self) -> Option<Flat> {
        match self.params {
            Params::Uniform => Some(Flat { bits: self.bits, shifted: false }),
            Params::Narrow(flat) => Some(flat),
            _ => None,
        }
    }

    /// As [`Coded::decoder`], of models whose values are equally probable; none of others. A program that needs no more links less.
    pub fn flat_decoder(&self) -> Option<FlatDecoder<'a>> {
        Some(FlatDecoder { coder: rans::Decoder::new(self.code)?, model: self.flat()? })
    }
}

/// Instructions that a weight takes on a Cortex-M4, written to its place included, counted in an emulator.
pub const FLAT_INSTRUCTIONS_PER_WEIGHT: u32 = 36;

/// Every value of a width equally probable.
///
/// | part | content |
/// |---|---|
/// | flags | u8: bits 0-3 width, 4 shifted: rows have zero points, 5-7 zero |
///
/// Levels of a shifted row lie beside zero: its zero point, which is told first, was added to them so that they fit the width. The weights must fit that of
/// their constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flat {
    /// From 2.
    pub bits: u8,
    /// See above.
    pub shifted: bool,
}

impl Flat {
    /// Reads them, of weights that are decoded to `wide` bits.
    fn parse(bytes: &mut &[u8], wide: u8) -> Option<Flat> {
        let flags = *bytes.split_off_first()?;
        let (bits, shifted) = (flags & 15, flags >> 4 == 1);
        let is_valid = flags < 0x20 && bits >= 2 && bits + u8::from(shifted) <= wide;
        is_valid.then_some(Flat { bits, shifted })
    }

    /// Writes them through `push`.
    pub fn emit(&self, mut push: impl FnMut(u8)) {
        push(self.bits | u8::from(self.shifted) << 4);
    }

    /// The next row.
    fn row(self, coder: &mut rans::Decoder<'_>, out: &mut [i8]) {
        let bits = self.bits as u32;
        let mut level = || {
            let slot = coder.slot(bits);
            coder.advance(slot, 1, bits);
            slot as i32 - (1 << (bits - 1))
        };
        let zero_point = if self.shifted { level() } else { 0 };
        for w in out {
            *w = (level() - zero_point) as i8;
        }
    }
}

#[derive(Debug)]
enum Model<'s> {
    Flat(Flat),
    Classes(Classes<'s>),
    Predictive(Predictive<'s>),
}

/// Decodes row after row.
#[derive(Debug)]
pub struct Decoder<'a, 's> {
    coder: rans::Decoder<'a>,
    model: Model<'s>,
}

impl Decoder<'_, '_> {
    /// The next row, [`Shape::row`] weights in the order `[position, channel]`. Rows beyond the last, and rows of damaged code, are of any content.
    pub fn row(&mut self, out: &mut [i8]) {
        // On the stack while it works, so that its state stays in registers.
        let mut coder = self.coder.clone();
        match &mut self.model {
            Model::Flat(model) => model.row(&mut coder, out),
            Model::Classes(model) => model.row(&mut coder, out),
            Model::Predictive(model) => model.row(&mut coder, out),
        }
        self.coder = coder;
    }

    /// After the last row: whether the code was that of these weights.
    pub fn is_finished(&self) -> bool {
        self.coder.is_finished()
    }
}

/// Refines row after row.
#[derive(Debug)]
pub struct Refiner<'a, 's> {
    coder: rans::Decoder<'a>,
    model: Refined<'a, 's>,
}

impl Refiner<'_, '_> {
    /// As [`Decoder::row`]; `row` holds the coarser row before.
    pub fn row(&mut self, row: &mut [i8]) {
        let mut coder = self.coder.clone();
        self.model.row(&mut coder, row);
        self.coder = coder;
    }

    /// As [`Decoder::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.coder.is_finished()
    }
}

/// Decodes row after row of equally probable values.
#[derive(Debug)]
pub struct FlatDecoder<'a> {
    coder: rans::Decoder<'a>,
    model: Flat,
}

impl FlatDecoder<'_> {
    /// As [`Decoder::row`].
    pub fn row(&mut self, out: &mut [i8]) {
        let mut coder = self.coder.clone();
        self.model.row(&mut coder, out);
        self.coder = coder;
    }

    /// As [`Decoder::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.coder.is_finished()
    }
}

/// Writes the header up to the parameters, through `push`.
pub fn emit_header(model: u8, shape: Shape, mut push: impl FnMut(u8)) {
    push(model);
    emit_varint(shape.rows, &mut push);
    emit_varint(shape.positions, &mut push);
}

/// Writes a varint through `push`.
pub fn emit_varint(mut value: usize, mut push: impl FnMut(u8)) {
    while value >= 128 {
        push(value as u8 | 0x80);
        value >>= 7;
    }
    push(value as u8);
}

pub(super) fn varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= (byte as usize & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The shape that a checked constant of `len` weights has, without a look at its model.
pub fn shape_of(bytes: &[u8], len: usize) -> Option<Shape> {
    let mut rest = bytes.get(1..)?;
    let (rows, positions) = (varint(&mut rest)?, varint(&mut rest)?);
    Some(Shape { rows, positions, channels: len.checked_div(rows.checked_mul(positions)?)? })
}
