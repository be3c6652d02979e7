//! What the programs share: the embedded model, the instruction counter, the stack gauge, flash, files on the host, failure.
//!
//! Programs are generic over `embedded-hal` and `embedded-io` traits where they touch the outside; in the emulator the outside is
//! semihosting. Logs are `defmt` frames, on semihosting's standard output in the emulator, which `cargo xtask` decodes, and by RTT elsewhere.

#![no_std]

#[cfg(all(feature = "probe", not(feature = "emulator")))]
use defmt_rtt as _;
#[cfg(all(feature = "probe", not(feature = "emulator"), target_arch = "arm"))]
use panic_probe as _;

pub mod counter;
#[cfg(feature = "emulator")]
mod failure;
pub mod flash;
#[cfg(feature = "emulator")]
pub mod host;
#[cfg(feature = "emulator")]
pub mod model;
pub mod register;
#[cfg(feature = "emulator")]
pub mod replay;
#[cfg(target_arch = "arm")]
pub mod sleep;
pub mod stack;
#[cfg(feature = "emulator")]
pub mod start;
#[cfg(feature = "helium")]
pub mod vector;

use embedded_hal::digital::OutputPin;
use pith::Engine;

/// What panic-probe is on Arm: the log says why, and the program stands still.
#[cfg(all(feature = "probe", not(feature = "emulator"), target_arch = "riscv32"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    defmt::error!("{}", defmt::Display2Format(info));
    loop {
        core::hint::spin_loop();
    }
}

/// What a board gives to `serve`: once, by `board::take`.
#[derive(Debug)]
pub struct Parts<L, S> {
    /// The line to the host.
    pub line: L,
    /// Where models are kept.
    pub store: S,
    /// Of the core's clock.
    pub counter: counter::Counter,
}

/// What a board gives to `sensor`: once, by `board::sense`.
#[derive(Debug)]
pub struct Senses<I, L, D> {
    /// The bus of an accelerometer.
    pub bus: I,
    /// Lights up where the model sees something.
    pub light: L,
    /// Between samples.
    pub delay: D,
}

/// Runs the model with `pin` high, so that a logic analyzer sees how long it takes.
pub fn run_marked<const USES: u64, P: OutputPin>(
    engine: &mut Engine<'_, '_, USES>,
    pin: &mut P,
) -> Result<(), P::Error> {
    pin.set_high()?;
    engine.run();
    pin.set_low()
}

/// A pin that leads nowhere, for boards without a free one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPin;

impl embedded_hal::digital::ErrorType for NoPin {
    type Error = core::convert::Infallible;
}

impl OutputPin for NoPin {
    fn set_low(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}
