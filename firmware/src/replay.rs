//! Senses of an emulated board: an accelerometer whose samples a file on the host holds, and a light that says so in the log.
//!
//! The file is `gestures.recording` in the emulator's working folder: x, y, z of every sample in 16 bits each, the low byte first. Where it ends, so does
//! the program, well.

use crate::Senses;
use crate::host::{self, HostFile};
use core::convert::Infallible;
use embedded_hal::digital::{ErrorType, OutputPin};
use embedded_io::Read;
use pith_sensing::replay::{Recorded, Replay};

/// Senses that know of time by `delay` alone.
pub fn senses<D>(delay: D) -> Senses<Replay<Recording>, Lamp, D> {
    let file = HostFile::open(c"gestures.recording").expect("gestures.recording is there");
    Senses { bus: Replay::new(Recording(file)), light: Lamp { is_lit: false }, delay }
}

/// Samples of a file.
#[derive(Debug)]
pub struct Recording(HostFile);

impl Iterator for Recording {
    type Item = Recorded;

    fn next(&mut self) -> Option<Recorded> {
        let mut bytes = [0; 6];
        if self.0.read_exact(&mut bytes).is_err() {
            defmt::info!("the recording is over");
            host::exit(true);
        }
        let [x, y, z] = [0, 2, 4].map(|at| i16::from_le_bytes([bytes[at], bytes[at + 1]]));
        Some([x, y, z])
    }
}

/// A light that is seen in the log.
#[derive(Debug)]
pub struct Lamp {
    is_lit: bool,
}

impl Lamp {
    fn set(&mut self, is_lit: bool) {
        if self.is_lit != is_lit {
            defmt::info!("light {}", if is_lit { "on" } else { "off" });
        }
        self.is_lit = is_lit;
    }
}

impl ErrorType for Lamp {
    type Error = Infallible;
}

impl OutputPin for Lamp {
    fn set_low(&mut self) -> Result<(), Infallible> {
        self.set(false);
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        self.set(true);
        Ok(())
    }
}
