//! Executed instructions, by SysTick under `qemu-system-arm -icount shift=0`: there one instruction takes one nanosecond, so a tick
//! of the core clock is a fixed number of instructions (40 at 25 MHz). On hardware the same ticks are core cycles.

use cortex_m::peripheral::{SYST, syst::SystClkSource};

/// SysTick counts 24 bits down; an interval may be at most that long.
const MASK: u32 = 0x00FF_FFFF;

/// A running counter.
#[derive(Debug)]
pub struct Counter {
    /// Ticks that an empty interval takes.
    overhead: u32,
}

impl Counter {
    /// Starts SysTick on the core clock.
    pub fn start(systick: &mut SYST) -> Counter {
        systick.set_clock_source(SystClkSource::Core);
        systick.set_reload(MASK);
        systick.clear_current();
        systick.enable_counter();
        let mut counter = Counter { overhead: 0 };
        counter.overhead = counter.ticks(|| ()).1;
        counter
    }

    /// The result of `f` and the ticks that it took.
    pub fn ticks<T>(&self, f: impl FnOnce() -> T) -> (T, u32) {
        let before = SYST::get_current();
        let result = f();
        let after = SYST::get_current();
        (result, (before.wrapping_sub(after) & MASK).saturating_sub(self.overhead))
    }
}
