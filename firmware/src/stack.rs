//! How deep the stack went: memory below the stack pointer is painted, and later searched for the first changed word.

use core::ptr::{read_volatile, write_volatile};

const PAINT: u32 = 0xC5C5_C5C5;

/// Most bytes that are painted.
const LIMIT: usize = 48 * 1024;

unsafe extern "C" {
    /// End of static data, from the linker script of cortex-m-rt or riscv-rt, or a little above it the word of esp-hal's that traps who writes it.
    #[cfg_attr(all(target_arch = "riscv32", not(feature = "emulator")), link_name = "__stack_chk_guard")]
    static mut __sheap: u32;

    /// Where the stack begins, from the same script.
    static mut _stack_start: u32;
}

/// A painted stretch below the stack pointer.
#[derive(Debug)]
pub struct Gauge {
    top: usize,
    bottom: usize,
}

impl Gauge {
    /// Paints from a little below the caller's frame down to the end of static data (or [`LIMIT`]).
    #[inline(never)]
    pub fn paint() -> Gauge {
        let marker = 0u32;
        let top = (&raw const marker as usize - 64) & !3;
        // Above the first word, which may be the guard.
        let bottom = ((&raw const __sheap as usize + 7) & !3).max(top.saturating_sub(LIMIT));
        for address in (bottom..top).step_by(4) {
            // SAFETY: the words lie between the end of static data and 64 bytes below this frame: RAM that neither statics nor any
            // live frame uses; an interrupt's frame that was there has ended.
            unsafe { write_volatile(address as *mut u32, PAINT) };
        }
        Gauge { top, bottom }
    }

    /// Bytes below the painter's frame that were used since; as many as were painted if all were.
    pub fn depth(&self) -> usize {
        // SAFETY: as in `paint`; reading such memory as words is valid whatever was written there.
        let untouched = |address: &usize| unsafe { read_volatile(*address as *const u32) } == PAINT;
        let clean = (self.bottom..self.top).step_by(4).take_while(untouched).count();
        self.top - self.bottom - 4 * clean
    }

    /// Bytes of the whole stack that were used since, with the frames of the painter and its callers.
    pub fn total(&self) -> usize {
        (&raw const _stack_start as usize) - self.top + self.depth()
    }
}
