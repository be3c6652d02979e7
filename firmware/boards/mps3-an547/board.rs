//! Arm MPS3 with the FPGA image AN547, a Cortex-M55 without flash: memory plays it, so that a model stays until power is off.

#![no_std]

use core::convert::Infallible;
use core::ptr::write_volatile;
pub use cortex_m_rt::entry;
use embedded_io::{ErrorType, Read, Write};
use pith_firmware::Parts;
use pith_firmware::counter::Counter;
use pith_firmware::flash::{Controller, Flash};
use pith_firmware::register::Register;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

/// A register of this chip.
const fn register(address: usize) -> Register {
    // SAFETY: every address in this file is that of a register of UART0 (CMSDK APB UART), which has no DMA, at its secure address.
    unsafe { Register::at(address) }
}

const UART_DATA: Register = register(0x5930_3000);
const UART_STATE: Register = register(0x5930_3004);
const UART_CTRL: Register = register(0x5930_3008);
const UART_BAUDDIV: Register = register(0x5930_3010);

const SENDER_FULL: u32 = 1 << 0;
const RECEIVED: u32 = 1 << 1;

/// Of the peripherals' clock.
const PERIPHERALS_HZ: u32 = 25_000_000;

/// Baud of the line.
const BAUD: u32 = 115_200;

/// The line, the memory of models, the counter; once.
pub fn take() -> Parts<Line, Flash<Sram>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    pith_firmware::vector::switch_on(&mut core.SCB);
    UART_BAUDDIV.write((PERIPHERALS_HZ + BAUD / 2) / BAUD);
    UART_CTRL.write(0b11);
    // SAFETY: `board.toml` gives all of the code SRAM to models and the ITCM to the program, which `build.rs` checks; only this function makes
    // such a value, and programs call it once, for their slots.
    let store = unsafe { Flash::new(Sram(()), SLOTS, SLOTS_BYTES) };
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
        UART_STATE.wait_for(RECEIVED);
        *first = UART_DATA.read() as u8;
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        let Some(&first) = from.first() else { return Ok(0) };
        while UART_STATE.read() & SENDER_FULL != 0 {}
        UART_DATA.write(u32::from(first));
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Memory, erased by writing ones.
#[derive(Debug)]
pub struct Sram(());

impl Controller for Sram {
    const ERASE_BYTES: usize = ERASE_BYTES;

    fn erase(&mut self, address: usize) {
        for word in (address..address + ERASE_BYTES).step_by(4) {
            // SAFETY: `Flash` erases sectors of its range alone, which is memory of models: no slice of it is in use now, as `Store::mapped` asks.
            unsafe { write_volatile(word as *mut u32, u32::MAX) };
        }
    }

    fn writing(&mut self, _: bool) {}

    fn wait(&mut self) {}
}
