//! A board's line: bytes as they come, and frames whose checksum is right, so that the fuzzer reaches the messages and the slots behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pith_link::frame::encode;
use pith_link::message::CHUNK;
use pith_link::server::{About, Meter, runs, serve};
use pith_link::slots::Slots;
use serde::ser::{Serialize, SerializeTuple, Serializer};
use std::convert::Infallible;

/// The flash of the server's own tests.
#[path = "../../../firmware/link/tests/it/flash.rs"]
#[allow(dead_code)]
mod flash;

const MEMORY: usize = 1024;

/// A message as it is, without a length before it.
struct Raw<'d>(&'d [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| bytes.serialize_element(byte))?;
        bytes.end()
    }
}

/// What is said; answers go nowhere.
struct Said(std::vec::IntoIter<u8>);

impl embedded_io::ErrorType for Said {
    type Error = Infallible;
}

impl embedded_io::Read for Said {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        Ok(to.iter_mut().zip(&mut self.0).map(|(to, byte)| *to = byte).count())
    }
}

impl embedded_io::Write for Said {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        Ok(from.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

struct Nothing;

impl Meter for Nothing {
    fn ticks(&self, work: &mut dyn FnMut()) -> u32 {
        work();
        1
    }

    fn stack_bytes(&self) -> u32 {
        0
    }
}

fuzz_target!(|data: &[u8]| {
    // Pieces: whether it is a message, its length, its bytes.
    let (mut rest, mut said, mut number) = (data, Vec::new(), 0u16);
    while let [kind, len, tail @ ..] = rest {
        let (piece, tail) = tail.split_at((*len as usize).min(tail.len()).min(CHUNK));
        number = number.wrapping_add(1);
        match kind % 4 {
            0 => said.extend(piece),
            _ => said.extend(encode(number, &Raw(piece)).expect("a piece fits a frame")),
        }
        rest = tail;
    }
    let mut memory = pith::Aligned([0; MEMORY]);
    let mut slots = Slots::new(flash::Flash::new(4096), |file| runs(file, MEMORY));
    let about = About { board: "fuzz", tick_hz: 1 };
    let _ = serve(about, &mut Said(said.into_iter()), &mut slots, &Nothing, &mut memory.0);
});
