//! Runs the models of `cases.bin`, a file on the host, and compares their outputs with those that stand there.
//!
//! A case is four little-endian 32-bit words (bytes of the model, of its inputs, of its output, zero) and these bytes one after another.
//! `verdicts.bin` gets a byte for each: 0 as expected, 1 other outputs, 2 memory outside of the arena was written, 3 not run at all.

#![no_std]
#![no_main]

use embedded_io::{Read, Write};
use pith::{Aligned, Engine, Model};
use pith_firmware::host::{HostFile, exit};
use pith_firmware::start::{counter, entry, singleton};

/// Largest model, arena, and inputs with output.
const BYTES: usize = 256 * 1024;

/// Bytes before and behind the arena that must stay as they are.
const GUARD: usize = 64;

const PAINT: u8 = 0xA5;

/// Ends the emulator, well or not.
#[entry]
fn main() -> ! {
    match run() {
        Ok((passed, count)) => {
            defmt::info!("{} of {} cases passed", passed, count);
            exit(passed == count)
        }
        Err(message) => {
            defmt::error!("{}", message);
            exit(false)
        }
    }
}

fn run() -> Result<(u32, u32), &'static str> {
    // Switches the core's extensions on.
    counter().ok_or("the counter is taken")?;
    let memory = || singleton!(: [Aligned<[u8; BYTES]>; 4] = [Aligned([0; BYTES]); 4]);
    let [model, data, decoded, arena] = memory().ok_or("the memory is taken")?;
    let mut cases = HostFile::open(c"cases.bin").map_err(|_| "no cases.bin")?;
    let mut verdicts = HostFile::create(c"verdicts.bin").map_err(|_| "no verdicts.bin")?;
    let (mut passed, mut count) = (0, 0);
    let mut head = [0; 16];
    while cases.read_exact(&mut head).is_ok() {
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]) as usize;
        let model = model.0.get_mut(..word(0)).ok_or("a model that is too large")?;
        let data = data.0.get_mut(..word(4) + word(8)).ok_or("inputs that are too large")?;
        cases.read_exact(model).and_then(|()| cases.read_exact(data)).map_err(|_| "a case is cut off")?;
        let (inputs, expected) = data.split_at(word(4));
        let verdict = judge(model, inputs, expected, &mut decoded.0, &mut arena.0);
        verdicts.write_all(&[verdict]).map_err(|_| "the host refused a verdict")?;
        passed += u32::from(verdict == 0);
        count += 1;
    }
    Ok((passed, count))
}

fn judge(file: &[u8], inputs: &[u8], expected: &[u8], decoded: &mut [u8], memory: &mut [u8]) -> u8 {
    let Ok(Ok(model)) = Model::parse(file).map(|model| model.decode_into(decoded, memory)) else { return 3 };
    let arena = GUARD..GUARD + model.arena_bytes();
    let Some(painted) = memory.get_mut(..arena.end + GUARD) else { return 3 };
    painted.fill(PAINT);
    let Some(Ok(mut engine)) = painted.get_mut(arena.clone()).map(|arena| Engine::new(&model, arena)) else {
        return 3;
    };
    let mut rest = inputs.iter();
    for k in 0..model.inputs().len() {
        engine.input(k).iter_mut().zip(&mut rest).for_each(|(to, &from)| *to = from as i8);
    }
    engine.run();
    let same = engine.output(0).len() == expected.len()
        && engine.output(0).iter().zip(expected).all(|(&got, &expected)| got as u8 == expected);
    let guarded = painted.iter().enumerate().all(|(i, &byte)| arena.contains(&i) || byte == PAINT);
    match (guarded, same) {
        (false, _) => 2,
        (true, false) => 1,
        (true, true) => 0,
    }
}
