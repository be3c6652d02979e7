//! What the programs share: the embedded model, the instruction counter, the stack gauge, files on the host, failure.
//!
//! Programs are generic over `embedded-hal` and `embedded-io` traits where they touch the outside; in the emulator the outside is
//! semihosting. Logs are `defmt` frames on semihosting's standard output, decoded by `cargo xtask`.

#![no_std]

use defmt_semihosting as _;

pub mod counter;
pub mod host;
pub mod model;
pub mod stack;

use embedded_hal::digital::OutputPin;
use pith::Engine;

/// Runs the model with `pin` high, so that a logic analyzer sees how long it takes.
pub fn run_marked<P: OutputPin>(engine: &mut Engine<'_, '_>, pin: &mut P) -> Result<(), P::Error> {
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

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    defmt::error!("panic: {}", defmt::Display2Format(info));
    host::exit(false)
}

/// A wild access or an unknown instruction ends the emulator instead of hanging it.
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    defmt::error!("hard fault at {:#x}", frame.pc());
    host::exit(false)
}
