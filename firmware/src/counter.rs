//! Ticks of the core clock: by the trace unit's cycle counter where there is one, by SysTick otherwise, or by what a board has.
//!
//! Under `qemu-system-arm -icount shift=0` one instruction takes one nanosecond and the cycle counter stands still, so a tick of SysTick is a
//! fixed number of executed instructions (40 at 25 MHz). An emulated RISC-V core counts its instructions itself. On hardware ticks are core cycles.

#[cfg(all(target_arch = "arm", not(armv6m)))]
use cortex_m::peripheral::DWT;
#[cfg(target_arch = "arm")]
use cortex_m::peripheral::{SYST, syst::SystClkSource};

/// A running counter.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    now: fn() -> u32,
    /// The counter's bits; an interval may be at most that long.
    mask: u32,
    /// Ticks that an empty interval takes.
    overhead: u32,
}

impl Counter {
    /// A counter that runs already: `now` counts up, in the bits of `mask`, which are the lowest.
    pub fn new(now: fn() -> u32, mask: u32) -> Counter {
        let mut counter = Counter { now, mask, overhead: 0 };
        counter.overhead = counter.ticks(|| ()).1;
        counter
    }

    /// The core's: 32 bits of cycles if it counts them, else SysTick's 24.
    #[cfg(target_arch = "arm")]
    pub fn of_core(core: &mut cortex_m::Peripherals) -> Counter {
        #[cfg(not(armv6m))]
        {
            core.DCB.enable_trace();
            core.DWT.enable_cycle_counter();
            let before = DWT::cycle_count();
            cortex_m::asm::nop();
            // An emulated one stands still.
            if DWT::cycle_count() != before {
                return Counter::new(DWT::cycle_count, u32::MAX);
            }
        }
        Counter::systick(&mut core.SYST)
    }

    /// SysTick on the core clock.
    #[cfg(target_arch = "arm")]
    pub fn systick(systick: &mut SYST) -> Counter {
        const MASK: u32 = 0x00FF_FFFF;
        systick.set_clock_source(SystClkSource::Core);
        systick.set_reload(MASK);
        systick.clear_current();
        systick.enable_counter();
        // It counts down.
        Counter::new(|| MASK - SYST::get_current(), MASK)
    }

    /// Retired instructions of a RISC-V core, in which the emulator is exact.
    #[cfg(all(target_arch = "riscv32", feature = "emulator"))]
    pub fn retired() -> Counter {
        Counter::new(|| riscv::register::minstret::read() as u32, u32::MAX)
    }

    /// The result of `f` and the ticks that it took.
    pub fn ticks<T>(&self, f: impl FnOnce() -> T) -> (T, u32) {
        let before = (self.now)();
        let result = f();
        let after = (self.now)();
        (result, (after.wrapping_sub(before) & self.mask).saturating_sub(self.overhead))
    }
}
