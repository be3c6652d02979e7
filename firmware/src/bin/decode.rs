//! Decodes the coded constants of `coded.bin`, a file on the host, and counts what that takes.
//!
//! A constant is four little-endian 32-bit words (bits of a weight, number of weights, bytes of the constant, CRC-32 of its weights) and its
//! bytes, with zeros to a multiple of four. `decoded.bin` gets two words for each: ticks of all rows, and 1 if the weights were the right
//! ones, else 0.

#![no_std]
#![no_main]

use embedded_io::{Read, Write};
use pith::circuit::Coded;
use pith::format::crc32::crc32;
use pith_firmware::counter::Counter;
use pith_firmware::host::{HostFile, exit};
use pith_firmware::start::{counter, entry, singleton};

/// Largest constant.
const BYTES: usize = 128 * 1024;

/// Most weights of a constant.
const WEIGHTS: usize = 256 * 1024;

/// Largest state of a decoder, in words.
const STATE: usize = 16 * 1024;

/// Ends the emulator, well or not.
#[entry]
fn main() -> ! {
    match run() {
        Ok(count) => {
            defmt::info!("{} constants", count);
            exit(true)
        }
        Err(message) => {
            defmt::error!("{}", message);
            exit(false)
        }
    }
}

fn run() -> Result<u32, &'static str> {
    let counter = counter().ok_or("the counter is taken")?;
    let bytes = singleton!(: [u8; BYTES] = [0; BYTES]).ok_or("the memory is taken")?;
    let state = singleton!(: [u32; STATE] = [0; STATE]).ok_or("the memory is taken")?;
    let weights = singleton!(: [i8; WEIGHTS] = [0; WEIGHTS]).ok_or("the memory is taken")?;
    let mut constants = HostFile::open(c"coded.bin").map_err(|_| "no coded.bin")?;
    let mut results = HostFile::create(c"decoded.bin").map_err(|_| "no decoded.bin")?;
    let mut head = [0; 16];
    let mut count = 0;
    while constants.read_exact(&mut head).is_ok() {
        let [bits, len, size, crc] = *head.as_chunks().0 else { return Err("a head is cut off") };
        let [bits, len, size, crc] = [bits, len, size, crc].map(u32::from_le_bytes);
        let stored = bytes.get_mut(..size.next_multiple_of(4) as usize).ok_or("a constant that is too large")?;
        constants.read_exact(stored).map_err(|_| "a constant is cut off")?;
        let code = stored.get(..size as usize).unwrap_or(&[]);
        let (ticks, found) = decode(code, bits as u8, len as usize, state, weights, &counter)?;
        for word in [ticks, u32::from(found == crc)] {
            results.write_all(&word.to_le_bytes()).map_err(|_| "the host refused a result")?;
        }
        count += 1;
    }
    Ok(count)
}

/// Ticks, and the CRC-32 of the weights: 0 if the code did not end where it should.
fn decode(
    code: &[u8],
    bits: u8,
    len: usize,
    state: &mut [u32],
    weights: &mut [i8],
    counter: &Counter,
) -> Result<(u32, u32), &'static str> {
    let coded = Coded::new_checked(code, bits, len)?;
    let weights = weights.get_mut(..len).ok_or("too many weights")?;
    let (is_finished, ticks) = counter.ticks(|| {
        let mut decoder = coded.decoder(state)?;
        weights.chunks_mut(coded.shape().row()).for_each(|row| decoder.row(row));
        Some(decoder.is_finished())
    });
    let is_finished = is_finished.ok_or("a state that is too large")?;
    Ok((ticks, if is_finished { crc32(bytemuck::cast_slice(weights)) } else { 0 }))
}
