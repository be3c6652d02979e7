//! ESP32-C3-DevKitM-1 and ESP32-C3-DevKitC-02, an ESP32-C3 at 160 MHz.
//!
//! Flash lies outside of the chip and is read through a cache, in pages of 64 KB that a table puts wherever they are wanted. The boot loader
//! fills in the pages of the program and no others; here those of the models follow, each at its own number, so that what lies at an address of
//! flash is read at [`ORIGIN`] plus that address. Writes go past the cache, which is told afterwards.

#![no_std]

use core::arch::asm;
use core::cell::Cell;
use core::ops::Range;
use core::slice::from_mut;
use critical_section::Mutex;
use embedded_io::{Read, Write};
use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use esp_hal::clock::CpuClock;
use esp_hal::delay::Delay;
use esp_hal::gpio::{Level, Output, OutputConfig};
use esp_hal::i2c::master::{self, I2c};
pub use esp_hal::main as entry;
use esp_hal::peripherals::{FLASH, GPIO5, GPIO6, GPIO7, I2C0, MMU_TABLE};
use esp_hal::time::Rate;
use esp_hal::uart::{self, Uart};
use esp_hal::{Blocking, Config};
use esp_rom_sys as _;
use esp_storage::{FlashStorage, FlashStorageError};
use pith_firmware::counter::Counter;
use pith_firmware::flash::Mapped;
use pith_firmware::{Parts, Senses};

include!(concat!(env!("OUT_DIR"), "/board.rs"));

esp_bootloader_esp_idf::esp_app_desc!();

/// Where data is read from flash.
const ORIGIN: usize = 0x3C00_0000;

/// Bytes of a page of the table.
const PAGE: usize = 64 * 1024;

/// Pages of the models.
const PAGES: Range<usize> = (SLOTS - ORIGIN) / PAGE..(SLOTS - ORIGIN + SLOTS_BYTES) / PAGE;

const _: () =
    assert!(SLOTS.is_multiple_of(PAGE) && SLOTS_BYTES.is_multiple_of(PAGE) && ERASE_BYTES == Chip::ERASE_SIZE);

/// What `take` leaves to `sense`.
struct Rest {
    bus: I2C0<'static>,
    sda: GPIO6<'static>,
    scl: GPIO7<'static>,
    light: GPIO5<'static>,
}

static REST: Mutex<Cell<Option<Rest>>> = Mutex::new(Cell::new(None));

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Mapped<Chip>> {
    let p = esp_hal::init(Config::default().with_cpu_clock(CpuClock::_160MHz));
    let rest = Rest { bus: p.I2C0, sda: p.GPIO6, scl: p.GPIO7, light: p.GPIO5 };
    critical_section::with(|section| REST.borrow(section).set(Some(rest)));
    let line = Uart::new(p.UART0, uart::Config::default()).expect("the default of 115,200 baud");
    let line = Line(line.with_rx(p.GPIO20).with_tx(p.GPIO21));
    Parts { line, store: store(p.FLASH), counter: counter() }
}

/// The bus (SDA GPIO6, SCL GPIO7), a light of your own at GPIO5, the delay, in which the core stays awake; once, in place of [`take`].
pub fn sense() -> Senses<I2c<'static, Blocking>, Output<'static>, Delay> {
    drop(take());
    let rest = critical_section::with(|section| REST.borrow(section).take()).expect("`take` leaves it");
    let config = master::Config::default().with_frequency(Rate::from_khz(400));
    let bus = I2c::new(rest.bus, config).expect("a frequency of the standard");
    Senses {
        bus: bus.with_sda(rest.sda).with_scl(rest.scl),
        light: Output::new(rest.light, Level::Low, OutputConfig::default()),
        delay: Delay::new(),
    }
}

/// The core's performance counter, set to cycles; it wraps.
fn counter() -> Counter {
    // SAFETY: the registers of this counter alone (mpcer, mpcmr), which change no memory and no course of the program.
    unsafe { asm!("csrw 0x7E0, {one}", "csrw 0x7E1, {one}", one = in(reg) 1) };
    let now = || {
        let cycles;
        // SAFETY: reads the counter (mpccr).
        unsafe { asm!("csrr {}, 0x7E2", out(reg) cycles) };
        cycles
    };
    Counter::new(now, u32::MAX)
}

/// UART0, whose FIFO holds 128 bytes.
pub struct Line(Uart<'static, Blocking>);

impl embedded_io::ErrorType for Line {
    type Error = uart::TxError;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, uart::TxError> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        // An error is said once, and clears; it is bytes that do not arrive, so the next one is waited for.
        while self.0.read(from_mut(first)).is_err() {}
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, uart::TxError> {
        self.0.write(from)
    }

    fn flush(&mut self) -> Result<(), uart::TxError> {
        self.0.flush()
    }
}

// Functions of the ROM, whose addresses esp-rom-sys gives to the linker.
unsafe extern "C" {
    /// Stops the cache; whether it loaded ahead.
    fn Cache_Suspend_ICache() -> u32;

    /// Starts it.
    fn Cache_Resume_ICache(ahead: u32);

    /// Drops what it holds of a range of addresses.
    fn Cache_Invalidate_Addr(address: u32, bytes: u32) -> i32;

    /// Maps pages of so many KB, from an address of flash (kind 0) on, at addresses where data is read; 0 if it did.
    fn Cache_Dbus_MMU_Set(kind: u32, address: u32, first: u32, page_kb: u32, pages: u32, is_fixed: u32) -> i32;
}

/// The flash of models, made readable.
fn store(flash: FLASH<'static>) -> Mapped<Chip> {
    // Entries serve code and data alike. The boot loader has cleared those that it did not need.
    let is_free = MMU_TABLE::regs().entry_iter().enumerate().all(|(place, entry)| {
        let entry = entry.read();
        let page = usize::from(entry.paddr().bits());
        entry.invalid().bit() || !PAGES.contains(&place) && !PAGES.contains(&page)
    });
    assert!(is_free, "the program lies where models belong");
    // SAFETY: the entries of these pages are free, as was just seen, so the program reads nothing through them; in here, no interrupt comes.
    let is_mapped = critical_section::with(|_| unsafe { map() } == 0);
    assert!(is_mapped, "the ROM refused to map the flash of models");
    // SAFETY: `board.toml` gives the last of the 4 MB of flash to models, and no page of the program lies there, as was seen; now it can be read,
    // until the next reset; only this function makes such a value, and programs call it once, for their slots.
    unsafe { Mapped::new(Chip(FlashStorage::new(flash)), (SLOTS - ORIGIN) as u32, SLOTS, SLOTS_BYTES) }
}

/// Maps the pages of the models. As the cache stands still meanwhile, this lies in RAM and calls nothing but the ROM.
///
/// # Safety
///
/// The table's entries are free, and no interrupt comes.
#[esp_hal::ram]
unsafe fn map() -> i32 {
    // SAFETY: what the ROM does here is what the vendor's own library does to map flash. No reference leads into the range yet, the code runs
    // from RAM, and no handler that might lie in flash runs, as the caller promises; the cache is started again before the return to flash.
    unsafe {
        let ahead = Cache_Suspend_ICache();
        let result = Cache_Dbus_MMU_Set(0, SLOTS as u32, (SLOTS - ORIGIN) as u32, 64, PAGES.len() as u32, 0);
        Cache_Invalidate_Addr(SLOTS as u32, SLOTS_BYTES as u32);
        Cache_Resume_ICache(ahead);
        result
    }
}

/// The flash chip. Its driver waits, in RAM and ROM, until the chip is done, and leaves the cache with what it held before.
pub struct Chip(FlashStorage<'static>);

impl Chip {
    /// Drops what the cache holds of the sectors of a range.
    fn forget(from: u32, to: u32) {
        let start = from / Self::ERASE_SIZE as u32 * Self::ERASE_SIZE as u32;
        let bytes = to.next_multiple_of(Self::ERASE_SIZE as u32) - start;
        // SAFETY: the cache only ever holds copies of flash, so nothing is lost but what the chip has in a newer state.
        critical_section::with(|_| unsafe { Cache_Invalidate_Addr(ORIGIN as u32 + start, bytes) });
    }
}

impl ErrorType for Chip {
    type Error = FlashStorageError;
}

impl ReadNorFlash for Chip {
    const READ_SIZE: usize = FlashStorage::READ_SIZE;

    fn read(&mut self, offset: u32, to: &mut [u8]) -> Result<(), FlashStorageError> {
        self.0.read_nor(offset, to)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl NorFlash for Chip {
    const WRITE_SIZE: usize = FlashStorage::WRITE_SIZE;
    const ERASE_SIZE: usize = FlashStorage::ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashStorageError> {
        let result = self.0.erase(from, to);
        Chip::forget(from, to);
        result
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FlashStorageError> {
        let result = self.0.write_nor(offset, bytes);
        Chip::forget(offset, offset + bytes.len() as u32);
        result
    }
}
