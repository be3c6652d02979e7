//! Nordic nRF52840 DK, an nRF52840 at 64 MHz from its crystal.
//!
//! The line is UART0, byte by byte, and not UARTE0, which is the same hardware behind DMA. There a read of one byte is a transfer of one byte,
//! and what comes in between two of them is held by nothing that is promised; after an error of the line, the HAL's read returns while the
//! transfer still writes into its buffer; and longer transfers need a timer that counts bytes. UART0, once started, receives until it is
//! stopped, errors or not, into a FIFO of six bytes: half a millisecond. That suffices without flow control, as questions and answers take
//! turns, and nothing waits for a host that holds CTS.
//!
//! SysTick stops while the core sleeps, so delays are those of a real-time counter.

#![no_std]

use core::cell::Cell;
use core::convert::Infallible;
use cortex_m::interrupt::{Mutex, free};
pub use cortex_m_rt::entry;
use embassy_nrf::config::{Config, HfclkSource, LfclkSource};
use embassy_nrf::gpio::{Input, Level, Output, OutputDrive, Pull};
use embassy_nrf::interrupt::{self, InterruptExt};
use embassy_nrf::nvmc::Nvmc;
use embassy_nrf::pac::UART0;
use embassy_nrf::pac::uart::vals::{Baudrate, Enable};
use embassy_nrf::peripherals::{P0_13, P0_26, P0_27, RTC2, TWISPI0, UARTE0};
use embassy_nrf::rtc::{CompareChannel, Interrupt, Rtc};
use embassy_nrf::twim::{self, Frequency, Twim};
use embassy_nrf::{Peri, bind_interrupts};
use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{self, OutputPin};
use embedded_io::{ErrorType, Read, Write};
use pith_firmware::counter::Counter;
use pith_firmware::flash::Mapped;
use pith_firmware::{Parts, Senses};
use static_cell::ConstStaticCell;

include!(concat!(env!("OUT_DIR"), "/board.rs"));

/// Pins of port 0 to the interface chip.
const PIN_TXD: u8 = 6;
const PIN_RXD: u8 = 8;

/// What `take` leaves to `sense`.
struct Rest {
    bus: Peri<'static, TWISPI0>,
    sda: Peri<'static, P0_26>,
    scl: Peri<'static, P0_27>,
    light: Peri<'static, P0_13>,
    clock: Peri<'static, RTC2>,
}

static REST: Mutex<Cell<Option<Rest>>> = Mutex::new(Cell::new(None));

/// The line, the flash of models, the counter; once.
pub fn take() -> Parts<Line, Mapped<Nvmc<'static>>> {
    let mut core = cortex_m::Peripherals::take().expect("parts are taken once");
    let mut config = Config::default();
    config.hfclk_source = HfclkSource::ExternalXtal;
    config.lfclk_source = LfclkSource::ExternalXtal;
    let p = embassy_nrf::init(config);
    let rest = Rest { bus: p.TWISPI0, sda: p.P0_26, scl: p.P0_27, light: p.P0_13, clock: p.RTC2 };
    free(|section| REST.borrow(section).set(Some(rest)));
    let line = Line {
        _uart: p.UARTE0,
        _txd: Output::new(p.P0_06, Level::High, OutputDrive::Standard),
        _rxd: Input::new(p.P0_08, Pull::Up),
    };
    UART0.psel().txd().write(|w| w.set_pin(PIN_TXD));
    UART0.psel().rxd().write(|w| w.set_pin(PIN_RXD));
    UART0.baudrate().write(|w| w.set_baudrate(Baudrate::Baud115200));
    UART0.enable().write(|w| w.set_enable(Enable::Enabled));
    UART0.events_rxdrdy().write_value(0);
    UART0.tasks_startrx().write_value(1);
    UART0.tasks_starttx().write_value(1);
    // SAFETY: `board.toml` gives the first half of the 1 MB of flash to the program and the other to models, which `build.rs` checks; only this
    // function makes such a value, and programs call it once, for their slots.
    let store = unsafe { Mapped::new(Nvmc::new(p.NVMC), SLOTS as u32, SLOTS, SLOTS_BYTES) };
    Parts { line, store, counter: Counter::of_core(&mut core) }
}

/// UART0, to the interface chip.
pub struct Line {
    _uart: Peri<'static, UARTE0>,
    _txd: Output<'static>,
    _rxd: Input<'static>,
}

impl ErrorType for Line {
    type Error = Infallible;
}

impl Read for Line {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        let Some(first) = to.first_mut() else { return Ok(0) };
        while UART0.events_rxdrdy().read() == 0 {}
        // Before the byte is read, which lets the next one raise it.
        UART0.events_rxdrdy().write_value(0);
        *first = UART0.rxd().read().rxd();
        Ok(1)
    }
}

impl Write for Line {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        let Some(&first) = from.first() else { return Ok(0) };
        UART0.events_txdrdy().write_value(0);
        UART0.txd().write(|w| w.set_txd(first));
        while UART0.events_txdrdy().read() == 0 {}
        Ok(1)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

bind_interrupts!(struct Interrupts { TWISPI0 => twim::InterruptHandler<TWISPI0>; });

/// The bus on the Arduino header (SDA P0.26, SCL P0.27), LED1, the delay; once, in place of [`take`].
pub fn sense() -> Senses<Twim<'static>, Light, Sleep> {
    /// What is written from flash, from where the bus's DMA cannot read.
    static FROM_FLASH: ConstStaticCell<[u8; 16]> = ConstStaticCell::new([0; 16]);
    drop(take());
    let rest = free(|section| REST.borrow(section).take()).expect("`take` leaves it");
    let mut config = twim::Config::default();
    config.frequency = Frequency::K400;
    config.sda_pullup = true;
    config.scl_pullup = true;
    let clock = Rtc::new(rest.clock, 0).expect("a prescaler that is none");
    Senses {
        bus: Twim::new(rest.bus, Interrupts, rest.sda, rest.scl, config, FROM_FLASH.take()),
        light: Light(Output::new(rest.light, Level::High, OutputDrive::Standard)),
        delay: Sleep::new(clock),
    }
}

/// LED1, which lights when its pin is low.
pub struct Light(Output<'static>);

impl digital::ErrorType for Light {
    type Error = Infallible;
}

impl OutputPin for Light {
    fn set_low(&mut self) -> Result<(), Infallible> {
        self.0.set_high();
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        self.0.set_low();
        Ok(())
    }
}

/// Sleeps until RTC2, which counts the 32,768 Hz of its crystal in 24 bits, has counted far enough.
pub struct Sleep(Rtc<'static>);

impl Sleep {
    fn new(mut clock: Rtc<'static>) -> Sleep {
        clock.enable();
        Sleep(clock)
    }
}

impl DelayNs for Sleep {
    fn delay_ns(&mut self, ns: u32) {
        let ticks = (u64::from(ns) * 32_768).div_ceil(1_000_000_000) as u32;
        // Interrupts are held off, so that the match ends the sleep without a handler.
        free(|_| {
            // One more for the tick that has begun; a match is sure to be seen two ticks ahead, of which one may pass before the next line.
            let end = (self.0.read() + ticks.max(2) + 1) & 0x00FF_FFFF;
            self.0.set_compare(CompareChannel::_0, end).expect("24 bits");
            self.0.reset_event(Interrupt::Compare0);
            self.0.enable_interrupt(Interrupt::Compare0, true);
            while !self.0.is_event_triggered(Interrupt::Compare0) {
                cortex_m::asm::wfi();
            }
            self.0.disable_interrupt(Interrupt::Compare0, true);
            interrupt::RTC2.unpend();
        });
    }
}
