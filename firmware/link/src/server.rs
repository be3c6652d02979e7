//! The board's end of the line: one question after another, for ever.
//!
//! Between two models there is a session: the engine borrows the file where it lies in flash, so an update ends the session when its file
//! is checked and the next begins with it. Inputs are written into the arena itself; nothing is kept twice.

use crate::frame::{Bytes, Receiver, encode_into};
use crate::message::{CHUNK, Identity, PROTOCOL, Reason, Request, Response, Running};
use crate::slots::{Failure, Slots, Store};
use core::fmt::Write as _;
use embedded_io::{Read, Write};
use heapless::{String, Vec};
use pith::format::crc32::crc32;
use pith::{Engine, Model};

/// Operators whose ticks are kept.
pub const MAX_OPERATORS: usize = 64;

/// What an error of the runtime may say over the line.
type Detail = String<96>;

/// What the board says of itself.
#[derive(Clone, Copy, Debug)]
pub struct About<'b> {
    /// Its name, as in `boards/`.
    pub board: &'b str,
    /// Ticks of a second.
    pub tick_hz: u32,
}

/// What the board measures.
pub trait Meter {
    /// Ticks that `work` takes.
    fn ticks(&self, work: &mut dyn FnMut()) -> u32;

    /// Stack that was in use at most since the start, in bytes; 0 where it is not measured.
    fn stack_bytes(&self) -> u32;
}

/// Answers until the line ends (a read of no bytes) or fails; on a board it does neither.
///
/// `memory` is for arenas and weights that are decoded once; it starts at a multiple of 16.
pub fn serve<P: Read + Write, S: Store, M: Meter>(
    about: About<'_>,
    port: &mut P,
    slots: &mut Slots<S>,
    meter: &M,
    memory: &mut [u8],
) -> Result<(), P::Error> {
    let mut line = Line { port, receiver: Receiver::default(), sent: Bytes::new(), number: None };
    let (memory_bytes, mut detail) = (memory.len(), Detail::new());
    loop {
        detail.clear();
        let running = slots.running().ok_or(Reason::NoModel);
        let mut engine = running.and_then(|stored| engine_for(stored.file, memory, &mut detail));
        let (engine, detail) = (&mut engine, &mut detail);
        let mut session = Session { about, slots, meter, memory_bytes, engine, detail, ticks: Vec::new(), total: 0 };
        match session.answer(&mut line)? {
            End::Line => return Ok(()),
            End::Model => {}
        }
    }
}

/// Whether a file runs in so much memory; what [`Slots::new`] asks.
pub fn runs(file: &[u8], memory_bytes: usize) -> bool {
    model_for(file, memory_bytes, &mut Detail::new()).is_ok()
}

/// Bytes that a model needs of the memory: for decoded weights, and then for the arena, which also serves to decode them.
#[inline(never)]
pub fn needed_bytes(model: &Model<'_>) -> usize {
    decoded_bytes(model).saturating_add(model.arena_bytes().max(scratch_bytes(model)))
}

fn decoded_bytes(model: &Model<'_>) -> usize {
    model.decoded_bytes().checked_next_multiple_of(16).unwrap_or(usize::MAX)
}

fn scratch_bytes(model: &Model<'_>) -> usize {
    if model.decoded_bytes() > 0 { model.decode_scratch_bytes() } else { 0 }
}

// The functions below are not part of their callers, which stay on the stack while a model runs.

/// A model that runs in so much memory.
#[inline(never)]
fn model_for<'f>(file: &'f [u8], memory_bytes: usize, detail: &mut Detail) -> Result<Model<'f>, Reason> {
    let model = Model::parse(file).map_err(|error| refused(error, detail))?;
    if needed_bytes(&model) <= memory_bytes { Ok(model) } else { Err(Reason::Memory) }
}

#[inline(never)]
fn engine_for<'a>(file: &'static [u8], memory: &'a mut [u8], detail: &mut Detail) -> Result<Engine<'a, 'a>, Reason> {
    let model = model_for(file, memory.len(), detail)?;
    let (decoded, arena) = memory.split_at_mut(decoded_bytes(&model));
    if model.decoded_bytes() == 0 {
        return Engine::new(&model, arena).map_err(|error| refused(error, detail));
    }
    decoding_engine(&model, decoded, arena, detail)
}

#[inline(never)]
fn decoding_engine<'a>(
    model: &Model<'static>,
    decoded: &'a mut [u8],
    arena: &'a mut [u8],
    detail: &mut Detail,
) -> Result<Engine<'a, 'a>, Reason> {
    let engine = model.decode_into(decoded, arena).and_then(|model| Engine::new(&model, arena));
    engine.map_err(|error| refused(error, detail))
}

/// The port, what comes in, and what went out last.
struct Line<'p, P> {
    port: &'p mut P,
    receiver: Receiver,
    /// The last answer: a question that comes again gets the same bytes.
    sent: Bytes,
    /// The number of its question.
    number: Option<u16>,
}

/// Why a session ends.
enum End {
    Line,
    Model,
}

struct Session<'s, 'e, S, M> {
    about: About<'s>,
    slots: &'s mut Slots<S>,
    meter: &'s M,
    memory_bytes: usize,
    engine: &'s mut Result<Engine<'e, 'e>, Reason>,
    /// To a model that is refused.
    detail: &'s mut Detail,
    /// Of every operator in the last run.
    ticks: Vec<u32, MAX_OPERATORS>,
    /// Of all of them.
    total: u64,
}

impl<S: Store, M: Meter> Session<'_, '_, S, M> {
    /// Answers until the model is another or the line ends.
    fn answer<P: Read + Write>(&mut self, line: &mut Line<'_, P>) -> Result<End, P::Error> {
        let Line { port, receiver, sent, number } = line;
        loop {
            let mut byte = [0];
            if port.read(&mut byte)? == 0 {
                return Ok(End::Line);
            }
            let Some(frame) = receiver.push(byte[0]) else { continue };
            let mut is_other = false;
            if *number != Some(frame.number) {
                *number = Some(frame.number);
                let request = frame.message::<Request<'_>>().ok_or(Reason::NotUnderstood);
                let done = request.and_then(|request| self.act(&request).map(|()| request));
                is_other = matches!(done, Ok(Request::Commit { .. }));
                self.answer_into(sent, frame.number, done);
            }
            port.write_all(sent)?;
            port.flush()?;
            if is_other {
                return Ok(End::Model);
            }
        }
    }

    /// Puts the answer to a request that was done, or refused, into `sent`.
    #[inline(never)]
    fn answer_into(&self, sent: &mut Bytes, number: u16, done: Result<Request<'_>, Reason>) {
        let answer = done.and_then(|request| self.say(&request));
        let answer = answer.unwrap_or_else(|reason| Response::Refused { reason, detail: self.detail(reason) });
        if encode_into(sent, number, &answer).is_err() {
            // Not so: data is no longer than CHUNK, and texts are bounded.
            sent.clear();
        }
    }

    /// Does what a request wants done.
    #[inline(never)]
    fn act(&mut self, request: &Request<'_>) -> Result<(), Reason> {
        match *request {
            Request::Begin { bytes } => self.slots.begin(bytes as usize).map_err(reason),
            Request::Write { offset, data } => self.slots.write(offset as usize, data).map_err(reason),
            Request::Commit { crc32 } => self.commit(crc32),
            Request::Input { index, offset, data } => self.write_input(index, offset, data),
            Request::Run => self.run(),
            Request::Identify | Request::Output { .. } | Request::Layers { .. } => Ok(()),
        }
    }

    /// What there is to say after it.
    fn say(&self, request: &Request<'_>) -> Result<Response<'_>, Reason> {
        match *request {
            Request::Identify => Ok(Response::Identity(self.identity())),
            Request::Run => Ok(Response::Ran {
                ticks: self.total,
                operators: self.ticks.len() as u16,
                stack_bytes: self.meter.stack_bytes(),
            }),
            Request::Output { index, offset, bytes } => {
                let engine = self.engine.as_ref().map_err(|reason| *reason)?;
                let bytes = part(offset as usize, (bytes as usize).min(CHUNK));
                let elements = engine.output(index as usize).get(bytes).ok_or(Reason::OutOfRange)?;
                Ok(Response::Data(bytemuck::cast_slice(elements)))
            }
            Request::Layers { first } => {
                let ticks = self.ticks.get(first as usize..).ok_or(Reason::OutOfRange)?;
                Ok(Response::Data(bytemuck::cast_slice(ticks.get(..CHUNK / 4).unwrap_or(ticks))))
            }
            _ => Ok(Response::Done),
        }
    }

    fn detail(&self, reason: Reason) -> &str {
        if reason == Reason::Model { self.detail } else { "" }
    }

    fn identity(&self) -> Identity<'_> {
        let running = self.slots.running().zip(self.engine.as_ref().ok());
        Identity {
            protocol: PROTOCOL,
            board: self.about.board,
            tick_hz: self.about.tick_hz,
            memory_bytes: self.memory_bytes as u32,
            slot_bytes: self.slots.file_bytes() as u32,
            model: running.map(|(stored, engine)| Running {
                version: stored.version,
                bytes: stored.file.len() as u32,
                crc32: crc32(stored.file),
                arena_bytes: engine.model().arena_bytes() as u32,
            }),
        }
    }

    /// Checks the file that was written, before it becomes the one that the board starts with.
    #[inline(never)]
    fn commit(&mut self, checksum: u32) -> Result<(), Reason> {
        let file = self.slots.written().map_err(reason)?;
        if crc32(file) != checksum {
            return Err(Reason::Checksum);
        }
        self.detail.clear();
        model_for(file, self.memory_bytes, self.detail)?;
        self.slots.commit(checksum).map(|_| ()).map_err(reason)
    }

    fn write_input(&mut self, index: u8, offset: u32, data: &[u8]) -> Result<(), Reason> {
        let engine = self.engine.as_mut().map_err(|reason| *reason)?;
        let to = engine.input(index as usize).get_mut(part(offset as usize, data.len())).ok_or(Reason::OutOfRange)?;
        to.copy_from_slice(bytemuck::cast_slice(data));
        Ok(())
    }

    #[inline(never)]
    fn run(&mut self) -> Result<(), Reason> {
        let engine = self.engine.as_mut().map_err(|reason| *reason)?;
        self.ticks.clear();
        self.total = 0;
        let (mut steps, mut is_more) = (engine.steps(), true);
        while is_more {
            let ticks = self.meter.ticks(&mut || is_more = steps.step().is_some());
            if is_more {
                self.total += u64::from(ticks);
                // Operators beyond those that are kept count in the total alone.
                let _ = self.ticks.push(ticks);
            }
        }
        Ok(())
    }
}

/// A range that does not overflow.
fn part(offset: usize, bytes: usize) -> core::ops::Range<usize> {
    offset..offset.saturating_add(bytes)
}

fn reason(failure: Failure) -> Reason {
    match failure {
        Failure::TooLong => Reason::TooLong,
        Failure::OutOfOrder => Reason::OutOfOrder,
        Failure::Flash => Reason::Flash,
        Failure::Checksum => Reason::Checksum,
    }
}

/// What the runtime says, as far as it fits.
#[inline(never)]
fn refused(error: pith::Error, detail: &mut Detail) -> Reason {
    let _ = write!(Cut(detail), "{error}");
    Reason::Model
}

/// Text whose end is cut off where it does not fit.
struct Cut<'d>(&'d mut Detail);

impl core::fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for c in text.chars() {
            self.0.push(c).map_err(|_| core::fmt::Error)?;
        }
        Ok(())
    }
}
