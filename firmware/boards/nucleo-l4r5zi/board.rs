//! NUCLEO-L4R5ZI, an STM32L4R5ZI at 120 MHz from its internal oscillator.

#![no_std]

use core::cell::Cell;
use cortex_m::interrupt::{Mutex, free};
use cortex_m::peripheral::SYST;
pub use cortex_m_rt::entry;
use cortex_m_rt::exception;
use embassy_stm32::flash::{self, Flash, MAX_ERASE_SIZE};
use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::i2c::{self, I2c, Master};
use embassy_stm32::mode::Blocking;
use embassy_stm32::pac::{FLASH, RCC};
use embassy_stm32::peripherals::{I2C1, PB7, PB8, PB9};
use embassy_stm32::rcc::mux::{I2c1sel, Lpuart1sel};
use embassy_stm32::rcc::{AHBPrescaler, PllMul, PllPreDiv, PllRDiv, PllSource, Sysclk};
use embassy_stm32::time::khz;
use embassy_stm32::usart::{self, Uart};
use embassy_stm32::{Config, Peri, Peripherals};
use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use pith_firmware::counter::Counter;
use pith_firmware::flash::Mapped;
use pith_firmware::register::Register;
use pith_firmware::sleep::Sleep;
use pith_firmware::{Parts, Senses};

#[path = "../stm32_line.rs"]
mod line;

pub use line::Line;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

const _: () = assert!(ERASE_BYTES == MAX_ERASE_SIZE);

/// Option bit: flash is in two banks.
const DBANK: u32 = 1 << 22;
/// Option bit: the chip starts in the second one.
const BFB2: u32 = 1 << 20;

/// What `take` leaves to `sense`.
struct Rest {
    bus: Peri<'static, I2C1>,
    scl: Peri<'static, PB8>,
    sda: Peri<'static, PB9>,
    light: Peri<'static, PB7>,
    systick: SYST,
}

static REST: Mutex<Cell<Option<Rest>>> = Mutex::new(Cell::new(None));

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Mapped<Pages>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    let p = start();
    let line = Uart::new_blocking(p.LPUART1, p.PG8, p.PG7, usart::Config::default());
    let line = Line(line.expect("the clock can be divided to the default of 115,200 baud"));
    let (pages, first) = (Pages(Flash::new_blocking(p.FLASH)), SLOTS - flash::FLASH_BASE);
    // SAFETY: `board.toml` gives the second of the two banks of flash to models and the first one to the program, which `build.rs` checks; only
    // this function makes such a value, and programs call it once, for their slots.
    let store = unsafe { Mapped::new(pages, first as u32, SLOTS, SLOTS_BYTES) };
    let counter = Counter::of_core(&mut core);
    let rest = Rest { bus: p.I2C1, scl: p.PB8, sda: p.PB9, light: p.PB7, systick: core.SYST };
    free(|section| REST.borrow(section).set(Some(rest)));
    Parts { line, store, counter }
}

/// The bus on D15 (SCL) and D14 (SDA), the blue light LD2, the delay; once, in place of [`take`].
pub fn sense() -> Senses<I2c<'static, Blocking, Master>, Output<'static>, Sleep> {
    drop(take());
    let rest = free(|section| REST.borrow(section).take()).expect("`take` leaves it");
    let mut config = i2c::Config::default();
    config.frequency = khz(400);
    // On a bus without a device, its address stays unanswered; on one that nothing pulls up, the driver would wait for ever.
    (config.scl_pullup, config.sda_pullup) = (true, true);
    Senses {
        bus: I2c::new_blocking(rest.bus, rest.scl, rest.sda, config),
        light: Output::new(rest.light, Level::Low, Speed::Low),
        delay: Sleep::new(rest.systick, TICK_HZ),
    }
}

/// The chip at full speed.
fn start() -> Peripherals {
    // Otherwise the driver would take the program's pages for those of models.
    assert!(FLASH.optr().read().0 & (DBANK | BFB2) == DBANK, "of the option bytes, DBANK has to be on and BFB2 off");
    let mut config = Config::default();
    config.rcc.hsi = true;
    config.rcc.sys = Sysclk::HSI;
    config.rcc.mux.lpuart1sel = Lpuart1sel::HSI;
    config.rcc.mux.i2c1sel = I2c1sel::HSI;
    let p = embassy_stm32::init(config);
    boost();
    p
}

/// From 16 to 120 MHz, for which the HAL sets neither the voltage nor enough wait states. Line and bus, whose clocks it divides, stay at 16 MHz.
fn boost() {
    // SAFETY: the address is that of PWR_CR5 in the reference manual (RM0432), which sets the voltage of the core.
    let voltage = unsafe { Register::at(0x4000_7080) };
    // R1MODE off: boosted.
    voltage.modify(0, 1 << 8);
    // 16 MHz / 2 * 30 / 2.
    RCC.pllcfgr().write(|pll| {
        pll.set_pllsrc(PllSource::HSI);
        pll.set_pllm(PllPreDiv::DIV2);
        pll.set_plln(PllMul::MUL30);
        pll.set_pllr(PllRDiv::DIV2);
        pll.set_pllren(true);
    });
    RCC.cr().modify(|cr| cr.set_pllon(true));
    while !RCC.cr().read().pllrdy() {}
    FLASH.acr().modify(|acr| acr.set_latency(5));
    while FLASH.acr().read().latency() != 5 {}
    // Through half the speed, for at least a microsecond.
    RCC.cfgr().modify(|cfgr| cfgr.set_hpre(AHBPrescaler::DIV2));
    RCC.cfgr().modify(|cfgr| cfgr.set_sw(Sysclk::PLL1_R));
    while RCC.cfgr().read().sws() != Sysclk::PLL1_R {}
    cortex_m::asm::delay(120);
    RCC.cfgr().modify(|cfgr| cfgr.set_hpre(AHBPrescaler::DIV1));
}

/// A double word has more wrong bits than its code corrects, as one can whose writing or erasure was cut off. Reading goes on: the checksum of its
/// slot finds them too.
#[exception]
unsafe fn NonMaskableInt() {
    // The flag, which is cleared by writing a one, would call again for ever.
    FLASH.eccr().modify(|eccr| eccr.set_eccd(true));
}

/// The flash. While it changes, its data cache is off: that would keep what was there before an erasure, and can be spoilt by what is read from the
/// other bank meanwhile.
pub struct Pages(Flash<'static, flash::Blocking>);

impl Pages {
    fn change<T>(&mut self, change: impl FnOnce(&mut Flash<'static, flash::Blocking>) -> T) -> T {
        FLASH.acr().modify(|acr| acr.set_dcen(false));
        let result = change(&mut self.0);
        FLASH.acr().modify(|acr| acr.set_dcrst(true));
        FLASH.acr().modify(|acr| acr.set_dcrst(false));
        FLASH.acr().modify(|acr| acr.set_dcen(true));
        result
    }
}

impl ErrorType for Pages {
    type Error = flash::Error;
}

impl ReadNorFlash for Pages {
    const READ_SIZE: usize = flash::READ_SIZE;

    fn read(&mut self, offset: u32, to: &mut [u8]) -> Result<(), flash::Error> {
        self.0.read(offset, to)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl NorFlash for Pages {
    const WRITE_SIZE: usize = flash::WRITE_SIZE;
    const ERASE_SIZE: usize = MAX_ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), flash::Error> {
        self.change(|flash| flash.erase(from, to))
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), flash::Error> {
        self.change(|flash| flash.write(offset, bytes))
    }
}
