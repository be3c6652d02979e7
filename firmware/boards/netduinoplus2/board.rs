//! Netduino Plus 2, an STM32F405. The emulated one has no clock controller, so clocks stay as they are after reset: 16 MHz from inside.

#![no_std]

use core::convert::Infallible;
pub use cortex_m_rt::entry;
use embedded_io::{ErrorType, Read, Write};
use pith_firmware::Parts;
use pith_firmware::counter::Counter;
use pith_firmware::flash::{Controller, Flash};
use pith_firmware::register::Register;
#[cfg(feature = "emulator")]
use pith_firmware::{
    Senses,
    replay::{Lamp, Recording, senses},
    sleep::Sleep,
};
#[cfg(feature = "emulator")]
use pith_sensing::replay::Replay;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

/// A register of this chip.
const fn register(address: usize) -> Register {
    // SAFETY: every address in this file is that of a control register in the reference manual (RM0090): of the clock gates, of port A, of USART1
    // without DMA, of the flash controller, whose writes reach no memory but flash.
    unsafe { Register::at(address) }
}

const RCC_AHB1ENR: Register = register(0x4002_3830);
const RCC_APB2ENR: Register = register(0x4002_3844);
const GPIOA_MODER: Register = register(0x4002_0000);
const GPIOA_AFRH: Register = register(0x4002_0024);
const USART1_SR: Register = register(0x4001_1000);
const USART1_DR: Register = register(0x4001_1004);
const USART1_BRR: Register = register(0x4001_1008);
const USART1_CR1: Register = register(0x4001_100C);
const FLASH_KEYR: Register = register(0x4002_3C04);
const FLASH_SR: Register = register(0x4002_3C0C);
const FLASH_CR: Register = register(0x4002_3C10);

const RECEIVED: u32 = 1 << 5;
const SENDABLE: u32 = 1 << 7;

/// Baud of the line.
const BAUD: u32 = 115_200;

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Flash<Sectors>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    RCC_AHB1ENR.modify(1, 0);
    RCC_APB2ENR.modify(1 << 4, 0);
    // PA9 and PA10: alternate function 7.
    GPIOA_AFRH.modify(0x770, 0xFF0);
    GPIOA_MODER.modify(0b1010 << 18, 0b1111 << 18);
    USART1_BRR.write((TICK_HZ + BAUD / 2) / BAUD);
    // On, sender and receiver.
    USART1_CR1.write(1 << 13 | 1 << 3 | 1 << 2);
    FLASH_KEYR.write(0x4567_0123);
    FLASH_KEYR.write(0xCDEF_89AB);
    // SAFETY: `board.toml` gives the last six sectors of the 1 MB of flash to models and the first ones to the program, which `build.rs`
    // checks; only this function makes such a value, and programs call it once, for their slots.
    let store = unsafe { Flash::new(Sectors(()), SLOTS, SLOTS_BYTES) };
    Parts { line: Line(()), store, counter: Counter::of_core(&mut core) }
}

/// A recorded accelerometer, a light in the log, sleep on the clock that the emulated core has: 168 MHz, whatever its registers say; once.
#[cfg(feature = "emulator")]
pub fn sense() -> Senses<Replay<Recording>, Lamp, Sleep> {
    let core = cortex_m::Peripherals::take().expect("senses are taken once");
    senses(Sleep::new(core.SYST, 168_000_000))
}

/// USART1.
#[derive(Debug)]
pub struct Line(());

impl ErrorType for Line {
    type Error = Infallible;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        USART1_SR.wait_for(RECEIVED);
        *first = USART1_DR.read() as u8;
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        let Some(&first) = from.first() else { return Ok(0) };
        USART1_SR.wait_for(SENDABLE);
        USART1_DR.write(u32::from(first));
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The flash controller.
#[derive(Debug)]
pub struct Sectors(());

impl Controller for Sectors {
    const ERASE_BYTES: usize = ERASE_BYTES;

    fn erase(&mut self, address: usize) {
        // Sector 5 is the first of the 128 KB sectors, at 128 KB.
        let sector = (address & 0xF_FFFF) / ERASE_BYTES + 4;
        self.wait();
        FLASH_CR.write(1 << 1 | (sector as u32) << 3);
        FLASH_CR.modify(1 << 16, 0);
        self.wait();
        FLASH_CR.write(0);
    }

    fn writing(&mut self, is_on: bool) {
        self.wait();
        FLASH_CR.write(if is_on { 0b10 << 8 | 1 } else { 0 });
    }

    fn wait(&mut self) {
        while FLASH_SR.read() & 1 << 16 != 0 {}
    }
}
