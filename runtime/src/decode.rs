//! Coded constants of a model, decoded: into RAM, page after page for flash, or one by one.
//!
//! Resident constants decode into one region, in their order, each at a multiple of [`ALIGN`]; gaps are zeros. What operators read of it is
//! [`Model::constant_bytes`]. The header carries its length and checksum, so that a device which has written it to flash need not decode again:
//!
//! ```text
//! RAM     decode_into ──> model to run
//! flash   decode_with ──> pages ──> flash;   then and after every later start: with_decoded ──> model to run
//! tiles   nothing to do: decoded while it runs
//! ```

use crate::circuit::{Coded, Decoder, Refiner};
use crate::coded::{self, Rows, Source, Unpacker};
use crate::error::Error;
use crate::format::crc32::crc32;
use crate::format::op::Op;
use crate::format::stages::PackedStages;
use crate::format::tensor::Constant;
use crate::format::{ALIGN, NONE};
use crate::model::Model;
use crate::precisions::MAX_PRECISIONS;
use crate::uses;

/// What [`Error::Constant`] says of code that is not that of its weights.
const DAMAGED: &str = "code: it is damaged; copy or build the file again";

impl<'m> Model<'m> {
    /// Bytes that resident constants take decoded, 0 if there are none.
    pub fn decoded_bytes(&self) -> usize {
        self.header().decoded_bytes as usize
    }

    /// Whether an engine can run it: nothing has to be decoded before, or it has been.
    pub fn is_decoded(&self) -> bool {
        self.decoded().len() == self.decoded_bytes()
    }

    /// Scratch bytes that decoding and [`Model::verify`] want, at any alignment; the arena may lend them. 0 if nothing is coded.
    pub fn decode_scratch_bytes(&self) -> usize {
        let of = |(id, op)| {
            let source = Source::of::<{ uses::ALL }>(self, &op).ok()?;
            Some(4 * state_words(self, id)? + source.row_bytes() + source.unit_bytes() + 4)
        };
        self.coded().filter_map(of).max().unwrap_or(0)
    }

    /// Decodes resident constants into `memory` (RAM), which needs [`Model::decoded_bytes`] at a multiple of [`ALIGN`], and returns the model that
    /// reads them there. `scratch` needs [`Model::decode_scratch_bytes`].
    pub fn decode_into<'d>(&self, memory: &'d mut [u8], scratch: &mut [u8]) -> Result<Model<'d>, Error>
    where
        'm: 'd,
    {
        let (needed, given) = (self.decoded_bytes(), memory.len());
        let memory =
            memory.get_mut(..needed).ok_or(Error::DecodeTooSmall { what: "the memory for weights", needed, given })?;
        if needed > 0 && memory.as_ptr().align_offset(ALIGN) != 0 {
            return Err(Error::DecodedMisaligned);
        }
        memory.fill(0);
        for (id, constant) in (0..).zip(self.constants()) {
            if constant.is_resident() {
                let (offset, bytes) = self.resident_range(id);
                let out = memory.get_mut(offset..).and_then(|m| m.get_mut(..bytes)).unwrap_or(&mut []);
                self.decode(id, out, scratch)?;
            }
        }
        Ok(self.over(memory))
    }

    /// Decodes resident constants page by page, for flash: `write` gets the offset of a page and its bytes, in order, and says whether it went well.
    /// The length of `page` is that of all pages (the last is filled up with zeros), `scratch` needs [`Model::decode_scratch_bytes`].
    pub fn decode_with(
        &self,
        scratch: &mut [u8],
        page: &mut [u8],
        write: &mut impl FnMut(usize, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut pages = Pages { page, taken: 0, offset: 0, write };
        for (id, constant) in (0..).zip(self.constants()) {
            if !constant.is_resident() {
                continue;
            }
            let (offset, mut left) = self.resident_range(id);
            pages.pad(offset)?;
            if let Some(stages) = self.packed_stages(id) {
                (0..stages.words()).try_for_each(|i| pages.put(&stages.word(i)))?;
                continue;
            }
            self.unpack(id, scratch, &mut |unpacker, unit| {
                while left > 0 {
                    let bytes = unit.len().min(left).max(1);
                    let out = unit.get_mut(..bytes).ok_or(damaged(id))?;
                    unpacker.fill(out);
                    pages.put(out)?;
                    left -= bytes;
                }
                Ok(())
            })?;
        }
        pages.finish()
    }

    /// The model over resident constants that were decoded before, after a look at their checksum. `bytes` lie at a multiple of [`ALIGN`] and may be
    /// longer than [`Model::decoded_bytes`].
    pub fn with_decoded<'d>(&self, bytes: &'d [u8]) -> Result<Model<'d>, Error>
    where
        'm: 'd,
    {
        let (needed, given) = (self.decoded_bytes(), bytes.len());
        let decoded = bytes.get(..needed).ok_or(Error::DecodeTooSmall { what: "what was decoded", needed, given })?;
        if needed > 0 && decoded.as_ptr().align_offset(ALIGN) != 0 {
            return Err(Error::DecodedMisaligned);
        }
        let (stored, computed) = (self.header().decoded_crc32, crc32(decoded));
        if needed > 0 && stored != computed {
            return Err(Error::DecodedChecksum { stored, computed });
        }
        Ok(self.over(decoded))
    }

    /// Decodes all coded constants once and says which of them is damaged. `scratch` needs [`Model::decode_scratch_bytes`].
    pub fn verify(&self, scratch: &mut [u8]) -> Result<(), Error> {
        let coded = |(id, constant): &(u16, &Constant)| constant.is_coded() && self.packed_stages(*id).is_none();
        for (id, _) in (0..).zip(self.constants()).filter(coded) {
            let mut left = self.decoded_len(id);
            self.unpack(id, scratch, &mut |unpacker, unit| {
                while left > 0 {
                    let bytes = unit.len().min(left).max(1);
                    unpacker.fill(unit.get_mut(..bytes).ok_or(damaged(id))?);
                    left -= bytes;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Decodes one coded constant into the bytes that it would have without code; `out` has exactly [`Model::decoded_len`] of them, `scratch`
    /// [`Model::decode_scratch_bytes`].
    pub fn decode(&self, id: u16, out: &mut [u8], scratch: &mut [u8]) -> Result<(), Error> {
        let (needed, given) = (self.decoded_len(id), out.len());
        if needed != given {
            return Err(Error::DecodeTooSmall { what: "the memory for weights", needed, given });
        }
        if let Some(stages) = self.packed_stages(id) {
            out.chunks_exact_mut(4).enumerate().for_each(|(i, word)| word.copy_from_slice(&stages.word(i)));
            return Ok(());
        }
        self.unpack(id, scratch, &mut |unpacker, _| {
            unpacker.fill(out);
            Ok(())
        })
    }

    /// The output stages of a coded constant of channels, which need no decoder: nothing about them can be damaged that is not checked.
    fn packed_stages(&self, id: u16) -> Option<PackedStages<'m>> {
        let constant = self.constant(id);
        let is_packed = constant.is_coded() && constant.kind == Constant::KIND_CHANNELS;
        is_packed.then(|| PackedStages::new(self.stored_bytes(id), constant.len as usize))
    }

    /// Bytes that a coded constant takes decoded, 0 if it is not coded.
    pub fn decoded_len(&self, id: u16) -> usize {
        let constant = self.constant(id);
        if constant.is_coded() { coded::decoded_bytes(&constant, self.stored_bytes(id)) } else { 0 }
    }

    /// Instructions that decoding a weight of a coded constant takes on a Cortex-M4, about, with all coarser constants that it refines.
    pub fn decode_instructions_per_weight(&self, id: u16) -> u32 {
        instructions(self, id).unwrap_or(0)
    }

    /// Coded constants with the operator that they are decoded for: the first that names them.
    pub(crate) fn coded(&self) -> impl Iterator<Item = (u16, Op<'m>)> {
        let model = *self;
        let coded = (0..).zip(self.constants()).filter(|(_, constant)| constant.is_coded());
        coded.filter_map(move |(id, _)| Some((id, model.user_of(id)?)))
    }

    fn user_of(&self, id: u16) -> Option<Op<'m>> {
        self.ops().map(|(_, op)| op).find(|op| op.weights() == Some(id))
    }

    /// Hands what decodes a constant, before its first row, and memory for a unit to `f`, which takes all of it.
    fn unpack(
        &self,
        id: u16,
        scratch: &mut [u8],
        f: &mut dyn FnMut(&mut Unpacker<'_, '_>, &mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let named = |what| Error::Constant { index: id.into(), what };
        let op = self.user_of(id).ok_or(named("use: no operator names it"))?;
        let source = Source::of::<{ uses::ALL }>(self, &op).map_err(named)?;
        let words = state_words(self, id).ok_or(damaged(id))?;
        let (state, row, unit) = (4 * words, source.row_bytes(), source.unit_bytes());
        let (needed, given) = (state + row + unit + 4, scratch.len());
        let too_small = Error::DecodeTooSmall { what: "the scratch memory", needed, given };
        let aligned = scratch.get_mut(scratch.as_ptr().align_offset(4)..).ok_or(too_small)?;
        let (state, rest) = aligned.split_at_mut_checked(state).ok_or(too_small)?;
        let (row, rest) = rest.split_at_mut_checked(row).ok_or(too_small)?;
        let unit = rest.get_mut(..unit).ok_or(too_small)?;
        let mut all = |rows: &mut dyn Rows| {
            let mut unpacker = source.unpack(rows, row).ok_or(damaged(id))?;
            f(&mut unpacker, unit)?;
            if unpacker.is_finished() { Ok(()) } else { Err(damaged(id)) }
        };
        match self.constant(id).refines {
            NONE => all(&mut source.decoder(state).ok_or(damaged(id))?),
            _ => refine(self, id, state, &mut all),
        }
    }

    /// Offset and length of a resident constant in the decoded region.
    fn resident_range(&self, id: u16) -> (usize, usize) {
        let mut end = 0usize;
        for (other, constant) in (0..id).zip(self.constants()) {
            if constant.is_resident() {
                end = end.next_multiple_of(ALIGN) + coded::decoded_bytes(constant, self.stored_bytes(other));
            }
        }
        (end.next_multiple_of(ALIGN), self.decoded_len(id))
    }

    /// A resident constant in the decoded region, empty before it is decoded.
    pub(crate) fn resident_bytes(&self, id: u16) -> &'m [u8] {
        if self.decoded().is_empty() || !self.constant(id).is_resident() {
            return &[];
        }
        let (offset, bytes) = self.resident_range(id);
        self.decoded().get(offset..).and_then(|rest| rest.get(..bytes)).unwrap_or(&[])
    }
}

/// Hands the rows of a refined constant to `f`. Apart, so that other constants need no stack for it.
#[inline(never)]
fn refine(
    model: &Model<'_>,
    id: u16,
    state: &mut [u8],
    f: &mut dyn FnMut(&mut dyn Rows) -> Result<(), Error>,
) -> Result<(), Error> {
    let state = bytemuck::try_cast_slice_mut(state).map_err(|_| damaged(id))?;
    f(&mut Refining::start(model, id, state).ok_or(damaged(id))?)
}

/// Words of state for a constant's decoder and those of all coarser ones that it refines.
fn state_words(model: &Model<'_>, id: u16) -> Option<usize> {
    let coded = coded(model, id)?;
    let coarser = if coded.is_refined() { coarser(model, id, state_words)? } else { 0 };
    coded.state_words().checked_add(coarser)
}

fn instructions(model: &Model<'_>, id: u16) -> Option<u32> {
    let coded = coded(model, id).filter(|_| model.constant(id).is_coded())?;
    let coarser = if coded.is_refined() { coarser(model, id, instructions)? } else { 0 };
    Some(coded.instructions_per_weight().saturating_add(coarser))
}

fn coded<'m>(model: &Model<'m>, id: u16) -> Option<Coded<'m>> {
    let constant = model.constant(id);
    Coded::new_checked(model.stored_bytes(id), constant.bits, constant.len as usize).ok()
}

/// What `f` makes of the constant that constant `id` refines. Apart, so that ordinary models need no stack for a second one.
#[inline(never)]
fn coarser<'m, T>(model: &Model<'m>, id: u16, f: impl FnOnce(&Model<'m>, u16) -> Option<T>) -> Option<T> {
    f(&model.coarser()?, model.constant(id).refines)
}

/// Rows of a constant: a row of the coarsest one, refined step by step.
struct Refining<'m, 's> {
    first: Decoder<'m, 's>,
    /// The coarsest first.
    finer: [Option<Refiner<'m, 's>>; MAX_PRECISIONS - 1],
}

impl<'m, 's> Refining<'m, 's> {
    fn start(model: &Model<'m>, id: u16, state: &'s mut [u32]) -> Option<Refining<'m, 's>> {
        let coded = coded(model, id)?;
        if !coded.is_refined() {
            return Some(Refining { first: coded.decoder(state)?, finer: [const { None }; MAX_PRECISIONS - 1] });
        }
        let (own, rest) = state.split_at_mut_checked(coded.state_words())?;
        let mut all = coarser(model, id, |model, id| Refining::start(model, id, rest))?;
        *all.finer.iter_mut().find(|place| place.is_none())? = Some(coded.refiner(own)?);
        Some(all)
    }
}

impl Rows for Refining<'_, '_> {
    fn row(&mut self, out: &mut [i8]) {
        self.first.row(out);
        self.finer.iter_mut().flatten().for_each(|refiner| refiner.row(out));
    }

    fn is_finished(&self) -> bool {
        self.first.is_finished() && self.finer.iter().flatten().all(Refiner::is_finished)
    }
}

fn damaged(id: u16) -> Error {
    Error::Constant { index: id.into(), what: DAMAGED }
}

/// Bytes on their way into pages.
struct Pages<'p, W> {
    page: &'p mut [u8],
    /// Bytes of the page that are filled.
    taken: usize,
    /// Of the page.
    offset: usize,
    write: &'p mut W,
}

impl<W: FnMut(usize, &[u8]) -> bool> Pages<'_, W> {
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = self.page.get_mut(self.taken..).unwrap_or(&mut []);
            if room.is_empty() {
                return Err(Error::DecodeTooSmall { what: "the page", needed: 1, given: 0 });
            }
            let (now, later) = bytes.split_at(room.len().min(bytes.len()));
            room.iter_mut().zip(now).for_each(|(to, &byte)| *to = byte);
            self.taken += now.len();
            bytes = later;
            if self.taken == self.page.len() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Zeros up to an offset.
    fn pad(&mut self, offset: usize) -> Result<(), Error> {
        while self.offset + self.taken < offset {
            self.put(&[0])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !(self.write)(self.offset, self.page) {
            return Err(Error::WriteRefused { offset: self.offset });
        }
        self.offset += self.page.len();
        self.taken = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<(), Error> {
        if self.taken == 0 {
            return Ok(());
        }
        self.page.iter_mut().skip(self.taken).for_each(|byte| *byte = 0);
        self.flush()
    }
}
