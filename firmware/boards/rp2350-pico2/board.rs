//! Raspberry Pi Pico 2, an RP2350A with its first Cortex-M33 at 150 MHz.

#![no_std]

use core::cell::Cell;
use cortex_m::interrupt::{Mutex, free};
pub use cortex_m_rt::entry;
use embassy_rp::flash::{self, Flash};
use embassy_rp::gpio::Output;
use embassy_rp::i2c::{self, I2c};
use embassy_rp::peripherals::{FLASH, I2C0};
use embassy_rp::uart::{self, Uart};
use pith_firmware::counter::Counter;
use pith_firmware::flash::Mapped;
use pith_firmware::sleep::Sleep;
use pith_firmware::{Parts, Senses};

#[path = "../rp2.rs"]
mod rp2;

pub use rp2::Line;
use rp2::Rest;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

/// Where flash is read, through a cache.
const ORIGIN: usize = 0x1000_0000;

/// The flash chip, 4 MB.
type Chip = Flash<'static, FLASH, flash::Blocking, { 4 * 1024 * 1024 }>;

static REST: Mutex<Cell<Option<Rest>>> = Mutex::new(Cell::new(None));

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Mapped<Chip>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    let p = embassy_rp::init(Default::default());
    let counter = Counter::of_core(&mut core);
    let rest = Rest { bus: p.I2C0, sda: p.PIN_4, scl: p.PIN_5, light: p.PIN_25, systick: core.SYST };
    free(|section| REST.borrow(section).set(Some(rest)));
    let line = Line(Uart::new_blocking(p.UART0, p.PIN_0, p.PIN_1, uart::Config::default()));
    // SAFETY: `board.toml` gives the first half of the 4 MB of flash to the program and the other to models, which `build.rs` checks; only this
    // function makes such a value, and programs call it once, for their slots. What the cache held of a page is gone once the page is written:
    // the driver has the ROM empty it.
    let store = unsafe { Mapped::new(Flash::new_blocking(p.FLASH), (SLOTS - ORIGIN) as u32, SLOTS, SLOTS_BYTES) };
    Parts { line, store, counter }
}

/// The bus (SDA GP4, SCL GP5), the green light, the delay; once, in place of [`take`].
pub fn sense() -> Senses<I2c<'static, I2C0, i2c::Blocking>, Output<'static>, Sleep> {
    drop(take());
    free(|section| REST.borrow(section).take()).expect("`take` leaves it").senses(TICK_HZ)
}
