//! What the two Picos share: the line, and what they sense with.

use core::convert::Infallible;
use core::slice::from_mut;
use cortex_m::peripheral::SYST;
use embassy_rp::Peri;
use embassy_rp::gpio::{Level, Output};
use embassy_rp::i2c::{self, I2c};
use embassy_rp::peripherals::{I2C0, PIN_4, PIN_5, PIN_25};
use embassy_rp::uart::{self, Uart};
use embedded_io::{ErrorType, Read, Write};
use pith_firmware::Senses;
use pith_firmware::sleep::Sleep;

/// UART0, whose FIFO holds 32 bytes. Default settings are 115,200 baud, no parity.
pub struct Line(pub Uart<'static, uart::Blocking>);

impl ErrorType for Line {
    type Error = Infallible;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        // An error is a byte that does not arrive, so it is waited for the next.
        while self.0.blocking_read(from_mut(first)).is_err() {}
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        // The sender knows no errors.
        let _ = self.0.blocking_write(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        let _ = self.0.blocking_flush();
        Ok(())
    }
}

/// What `take` leaves to `sense`.
pub struct Rest {
    pub bus: Peri<'static, I2C0>,
    pub sda: Peri<'static, PIN_4>,
    pub scl: Peri<'static, PIN_5>,
    pub light: Peri<'static, PIN_25>,
    pub systick: SYST,
}

impl Rest {
    /// The bus, the green light, the delay of a core at so many Hz.
    pub fn senses(self, hz: u32) -> Senses<I2c<'static, I2C0, i2c::Blocking>, Output<'static>, Sleep> {
        let mut config = i2c::Config::default();
        config.frequency = 400_000;
        Senses {
            bus: I2c::new_blocking(self.bus, self.scl, self.sda, config),
            light: Output::new(self.light, Level::Low),
            delay: Sleep::new(self.systick, hz),
        }
    }
}
