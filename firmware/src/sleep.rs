//! Sleep between samples: the core waits for interrupts until SysTick has run out.
//!
//! No handler is needed and none ever runs: SysTick may ask for its interrupt only while interrupts are masked, where a pending one still ends
//! WFI, and the request is taken back before they are let in again. That time has run out is known from SysTick's COUNTFLAG alone, which keeps
//! what happens outside of the masked stretch. Interrupts of others end WFI too, are served at once, and the sleep goes on.
//!
//! A sleep that stops the core's clock stops SysTick, and nothing wakes the core: an STM32's Sleep mode does not, other chips' WFI may, such as
//! Nordic's; there a timer of the chip has to do this.

use cortex_m::asm::{dsb, isb, wfi};
use cortex_m::interrupt;
use cortex_m::peripheral::{SCB, SYST};
use embedded_hal::delay::DelayNs;

/// Bits of SysTick's control register.
const ENABLE: u32 = 1;
const INTERRUPT: u32 = 1 << 1;
const CORE_CLOCK: u32 = 1 << 2;

/// SysTick counts down from 24 bits.
const PERIOD_BITS: u32 = 24;

/// Delays in which the core sleeps; exact to a few microseconds, and never shorter than asked for.
pub struct Sleep {
    systick: SYST,
    /// Ticks of a nanosecond, with 32 bits behind the point.
    ticks: u64,
}

impl Sleep {
    /// Sleeps by this timer, whose clock, the core's, has `hz` below 1 GHz.
    pub fn new(systick: SYST, hz: u32) -> Sleep {
        Sleep { systick, ticks: ((u64::from(hz)) << 32).div_ceil(1_000_000_000) }
    }

    /// Writes the control register without reading it, which would clear COUNTFLAG.
    fn control(&mut self, bits: u32) {
        // SAFETY: the register is this value's, and the bits only start and stop the counter and its interrupt; where that may become pending,
        // interrupts are masked, so that no critical section of others is broken and no handler runs.
        unsafe { self.systick.csr.write(bits) }
    }

    /// Sleeps until the running counter has come to zero once more.
    fn until_wrapped(&mut self) {
        let mut is_over = false;
        while !is_over {
            interrupt::free(|_| {
                self.control(ENABLE | CORE_CLOCK | INTERRUPT);
                is_over = self.systick.has_wrapped();
                if !is_over {
                    // What has become pending since then, or becomes so, ends it.
                    wfi();
                    is_over = self.systick.has_wrapped();
                }
                self.control(ENABLE | CORE_CLOCK);
                SCB::clear_pendst();
                dsb();
                isb();
            });
        }
    }
}

impl DelayNs for Sleep {
    fn delay_ns(&mut self, ns: u32) {
        if ns == 0 {
            return;
        }
        // Rounded up: a tick may have begun.
        let ticks = ((u64::from(ns) * self.ticks) >> 32) as u32 + 1;
        // Equal periods, so that the counter need not be set anew between them.
        let periods = (ticks >> PERIOD_BITS) + 1;
        self.control(CORE_CLOCK);
        self.systick.set_reload(ticks / periods);
        // Clears COUNTFLAG as well.
        self.systick.clear_current();
        self.control(ENABLE | CORE_CLOCK);
        for _ in 0..periods {
            self.until_wrapped();
        }
        self.control(CORE_CLOCK);
    }
}
