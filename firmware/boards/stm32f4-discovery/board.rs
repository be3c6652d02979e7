//! STM32F4DISCOVERY, an STM32F407VG at 168 MHz from its crystal of 8 MHz.

#![no_std]

use core::cell::Cell;
use cortex_m::interrupt::{Mutex, free};
use cortex_m::peripheral::SYST;
pub use cortex_m_rt::entry;
use embassy_stm32::flash::{self, Flash, MAX_ERASE_SIZE};
use embassy_stm32::gpio::{Level, Output, Pull, Speed};
use embassy_stm32::i2c::{self, I2c, Master};
use embassy_stm32::mode::Blocking;
use embassy_stm32::pac::{DBGMCU, FLASH};
use embassy_stm32::peripherals::{I2C1, PB6, PB9, PD12};
use embassy_stm32::rcc::{APBPrescaler, Hse, HseMode, Pll, PllMul, PllPDiv, PllPreDiv, PllQDiv, PllSource, Sysclk};
use embassy_stm32::time::{khz, mhz};
use embassy_stm32::usart::{self, Uart};
use embassy_stm32::{Config, Peri, Peripherals};
use pith_firmware::counter::Counter;
use pith_firmware::flash::Mapped;
use pith_firmware::sleep::Sleep;
use pith_firmware::{Parts, Senses};

#[path = "../stm32_line.rs"]
mod line;
#[path = "../stm32f4_flash.rs"]
mod sectors;

pub use line::Line;
pub use sectors::Sectors;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

const _: () = assert!(ERASE_BYTES == MAX_ERASE_SIZE);

/// What `take` leaves to `sense`.
struct Rest {
    bus: Peri<'static, I2C1>,
    scl: Peri<'static, PB6>,
    sda: Peri<'static, PB9>,
    light: Peri<'static, PD12>,
    systick: SYST,
}

static REST: Mutex<Cell<Option<Rest>>> = Mutex::new(Cell::new(None));

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Mapped<Sectors>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    let p = start();
    let mut config = usart::Config::default();
    // The adapter may be absent.
    config.rx_pull = Pull::Up;
    let line = Uart::new_blocking(p.USART2, p.PA3, p.PA2, config);
    let line = Line(line.expect("the clock can be divided to the default of 115,200 baud"));
    let (sectors, first) = (Sectors(Flash::new_blocking(p.FLASH)), SLOTS - flash::FLASH_BASE);
    // SAFETY: `board.toml` gives the last six sectors of the 1 MB of flash to models and the first ones to the program, which `build.rs` checks;
    // only this function makes such a value, and programs call it once, for their slots.
    let store = unsafe { Mapped::new(sectors, first as u32, SLOTS, SLOTS_BYTES) };
    let counter = Counter::of_core(&mut core);
    let rest = Rest { bus: p.I2C1, scl: p.PB6, sda: p.PB9, light: p.PD12, systick: core.SYST };
    free(|section| REST.borrow(section).set(Some(rest)));
    Parts { line, store, counter }
}

/// The bus (SCL PB6, SDA PB9), on which the audio converter is too, the green light LD4, the delay; once, in place of [`take`].
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
    let mut config = Config::default();
    config.rcc.hse = Some(Hse { freq: mhz(8), mode: HseMode::Oscillator });
    config.rcc.pll_src = PllSource::HSE;
    // 8 MHz / 4 * 168 / 2; the other output is not used, but a divisor of 0 is not allowed.
    let (divp, divq) = (Some(PllPDiv::DIV2), Some(PllQDiv::DIV7));
    config.rcc.pll = Some(Pll { prediv: PllPreDiv::DIV4, mul: PllMul::MUL168, divp, divq, divr: None });
    config.rcc.sys = Sysclk::PLL1_P;
    config.rcc.apb1_pre = APBPrescaler::DIV4;
    config.rcc.apb2_pre = APBPrescaler::DIV2;
    let p = embassy_stm32::init(config);
    // The HAL sets the wait states of the flash, and nothing that hides them. Prefetching fails on the first revision of the chip.
    let is_first = DBGMCU.idcode().read().rev_id() == 0x1000;
    FLASH.acr().modify(|acr| {
        acr.set_prften(!is_first);
        acr.set_icen(true);
        acr.set_dcen(true);
    });
    p
}
