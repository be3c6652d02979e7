//! BBC micro:bit v1, an nRF51822 that runs at 16 MHz after reset.

#![no_std]

use core::convert::Infallible;
pub use cortex_m_rt::entry;
use embedded_io::{ErrorType, Read, Write};
use pith_firmware::Parts;
use pith_firmware::counter::Counter;
use pith_firmware::flash::{Controller, Flash};
use pith_firmware::register::Register;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

/// A register of this chip.
const fn register(address: usize) -> Register {
    // SAFETY: every address in this file is that of a register in the reference manual (nRF51 Series): of UART0, which has no DMA, of a pin, of
    // the flash controller, which changes no memory but flash.
    unsafe { Register::at(address) }
}

const START_RECEIVER: Register = register(0x4000_2000);
const START_SENDER: Register = register(0x4000_2008);
const RECEIVED: Register = register(0x4000_2108);
const SENT: Register = register(0x4000_211C);
const UART_ENABLE: Register = register(0x4000_2500);
const UART_PIN_TXD: Register = register(0x4000_250C);
const UART_PIN_RXD: Register = register(0x4000_2514);
const RXD: Register = register(0x4000_2518);
const TXD: Register = register(0x4000_251C);
const UART_BAUDRATE: Register = register(0x4000_2524);
const TXD_CONFIG: Register = register(0x5000_0760);
const NVMC_READY: Register = register(0x4001_E400);
const NVMC_CONFIG: Register = register(0x4001_E504);
const NVMC_ERASEPAGE: Register = register(0x4001_E508);

/// The pins of the USB interface.
const PIN_TXD: u32 = 24;
const PIN_RXD: u32 = 25;

/// 115,200 baud.
const BAUD: u32 = 0x01D7_E000;

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Flash<Pages>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    // Output, input disconnected.
    TXD_CONFIG.write(0b11);
    UART_PIN_TXD.write(PIN_TXD);
    UART_PIN_RXD.write(PIN_RXD);
    UART_BAUDRATE.write(BAUD);
    UART_ENABLE.write(4);
    RECEIVED.write(0);
    START_RECEIVER.write(1);
    START_SENDER.write(1);
    // SAFETY: `board.toml` gives the first 98 KB of the 256 KB of flash to the program and the others to models, which `build.rs` checks; only this
    // function makes such a value, and programs call it once, for their slots.
    let store = unsafe { Flash::new(Pages(()), SLOTS, SLOTS_BYTES) };
    Parts { line: Line(()), store, counter: Counter::of_core(&mut core) }
}

/// UART0.
#[derive(Debug)]
pub struct Line(());

impl ErrorType for Line {
    type Error = Infallible;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        RECEIVED.wait_for(1);
        RECEIVED.write(0);
        *first = RXD.read() as u8;
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        let Some(&first) = from.first() else { return Ok(0) };
        SENT.write(0);
        TXD.write(u32::from(first));
        SENT.wait_for(1);
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The flash controller.
#[derive(Debug)]
pub struct Pages(());

impl Controller for Pages {
    const ERASE_BYTES: usize = ERASE_BYTES;

    fn erase(&mut self, address: usize) {
        NVMC_CONFIG.write(2);
        self.wait();
        NVMC_ERASEPAGE.write(address as u32);
        self.wait();
        NVMC_CONFIG.write(0);
    }

    fn writing(&mut self, is_on: bool) {
        NVMC_CONFIG.write(u32::from(is_on));
        self.wait();
    }

    fn wait(&mut self) {
        NVMC_READY.wait_for(1);
    }
}
