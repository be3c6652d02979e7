//! Runs the embedded model on the embedded inputs.
//!
//! Writes two files on the host: `outputs.bin`, the int8 outputs of one sample after another, and `counts.bin`, little-endian 32-bit
//! words: ticks of one whole run, stack bytes of a run, arena bytes that a run changed, ticks of decoding weights before the first run, then ticks
//! of every operator.

#![no_std]
#![no_main]

use embedded_io::Write;
use pith::format::tensor::Constant;
use pith::{Aligned, Engine, Model, uses};
use pith_firmware::host::{HostError, HostFile, exit};
use pith_firmware::model::{ARENA_BYTES, DECODED_BYTES, USES, inputs, model};
use pith_firmware::stack::Gauge;
use pith_firmware::start::{counter, entry, singleton};
use pith_firmware::{NoPin, run_marked};

/// Operators that are timed one by one.
const MAX_OPS: usize = 256;

/// Bytes of one write to the host.
const BUFFER: usize = 256;

/// Ends the emulator, well or not.
#[entry]
fn main() -> ! {
    match run() {
        Ok(()) => exit(true),
        Err(message) => {
            defmt::error!("{}", message);
            exit(false)
        }
    }
}

fn run() -> Result<(), &'static str> {
    let counter = counter().ok_or("the counter is taken")?;
    let model = model();
    let arena = singleton!(: Aligned<[u8; ARENA_BYTES]> = Aligned([0; ARENA_BYTES])).ok_or("the arena is taken")?;
    defmt::info!("model of {} bytes, arena of {} bytes", model.header().file_bytes, model.arena_bytes());

    let (model, decoding) = match uses::decodes_once(USES) {
        true => {
            let (decoded, ticks) = counter.ticks(|| decode(model, &mut arena.0));
            (decoded?, ticks)
        }
        false => (model, 0),
    };

    let sample_bytes: usize = model.inputs().iter().map(|p| model.tensor(p.tensor).len as usize).sum();
    let touched = touched_bytes(&model, &mut arena.0, sample_bytes)?;
    let mut engine = Engine::<USES>::using(&model, &mut arena.0).map_err(|_| "the arena does not fit")?;
    let mut outputs = HostFile::create(c"outputs.bin").map_err(refused)?;
    let mut counts: heapless::Vec<u32, MAX_OPS> = heapless::Vec::new();
    let (mut total, mut stack) = (0, 0);
    for (i, sample) in inputs().chunks_exact(sample_bytes.max(1)).enumerate() {
        feed(&mut engine, sample);
        match i {
            0 => {
                let gauge = Gauge::paint();
                let (done, ticks) = counter.ticks(|| run_marked(&mut engine, &mut NoPin));
                done.map_err(|_| "the pin failed")?;
                (total, stack) = (ticks, gauge.depth());
            }
            1 => {
                let mut steps = engine.steps();
                loop {
                    let (step, ticks) = counter.ticks(|| steps.step().is_some());
                    if !step || counts.push(ticks).is_err() {
                        break;
                    }
                }
                // More operators than are timed.
                while steps.step().is_some() {}
            }
            _ => engine.run(),
        }
        for k in 0..model.outputs().len() {
            // A semihosting call is slow, so bytes travel together.
            for part in engine.output(k).chunks(BUFFER) {
                let bytes: heapless::Vec<u8, BUFFER> = part.iter().map(|&q| q as u8).collect();
                outputs.write_all(&bytes).map_err(refused)?;
            }
        }
    }
    let mut report = HostFile::create(c"counts.bin").map_err(refused)?;
    for word in [total, stack as u32, touched as u32, decoding].iter().chain(&counts) {
        report.write_all(&word.to_le_bytes()).map_err(refused)?;
    }
    defmt::info!("{} ticks, {} bytes of stack, {} bytes of arena changed", total, stack, touched);
    Ok(())
}

/// The model with its weights decoded, as far as they are decoded once. `memory` is free before the first run.
fn decode(model: Model<'static>, memory: &mut [u8]) -> Result<Model<'static>, &'static str> {
    let decoded = singleton!(: Aligned<[u8; DECODED_BYTES]> = Aligned([0; DECODED_BYTES]));
    let decoded = &mut decoded.ok_or("the memory for weights is taken")?.0;
    if !model.constants().iter().any(|c| c.is_coded() && c.residency == Constant::IN_FLASH) {
        return model.decode_into(decoded, memory).map_err(|_| "the weights are damaged");
    }
    // Flash, as far as the model knows: written page by page, then trusted for its checksum, as after the next start.
    let mut write = |offset: usize, page: &[u8]| {
        let to = decoded.iter_mut().skip(offset);
        to.zip(page).for_each(|(to, &byte)| *to = byte);
        true
    };
    model.decode_with(memory, &mut [0; BUFFER], &mut write).map_err(|_| "the weights are damaged")?;
    model.with_decoded(decoded).map_err(|_| "the pages are damaged")
}

fn refused(_: HostError) -> &'static str {
    "the host refused a file"
}

fn feed(engine: &mut Engine<'_, '_, USES>, sample: &[u8]) {
    let mut rest = sample.iter();
    for k in 0..engine.model().inputs().len() {
        engine.input(k).iter_mut().zip(&mut rest).for_each(|(to, &from)| *to = from as i8);
    }
}

/// One past the last arena byte that a run changes, tried with two paints so that no value hides.
fn touched_bytes(model: &Model<'_>, arena: &mut [u8], sample_bytes: usize) -> Result<usize, &'static str> {
    let mut touched = 0;
    for paint in [0xA5, 0x5A] {
        arena.fill(paint);
        let mut engine = Engine::<USES>::using(model, arena).map_err(|_| "the arena does not fit")?;
        feed(&mut engine, inputs().get(..sample_bytes).unwrap_or(&[]));
        engine.run();
        touched = touched.max(arena.iter().rposition(|&b| b != paint).map_or(0, |i| i + 1));
    }
    Ok(touched)
}
