//! The line of STM32 boards: a UART of the HAL, polled.

use core::slice::from_mut;
use embassy_stm32::mode::Blocking;
use embassy_stm32::usart::{Error, Uart};
use embedded_io::{ErrorType, Read, Write};

/// A UART.
pub struct Line(pub Uart<'static, Blocking>);

impl ErrorType for Line {
    type Error = Error;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Error> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        // An error is said once, and clears; the frame that it was in ends with a wrong checksum.
        while self.0.blocking_read(from_mut(first)).is_err() {}
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Error> {
        self.0.write(from)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.flush()
    }
}
