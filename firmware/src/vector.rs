//! The vector unit of a Cortex-M55: off after reset, and cortex-m-rt switches it on for hard-float targets only.

use cortex_m::asm::{dsb, isb};
use cortex_m::peripheral::SCB;

/// Full access to coprocessors 10 and 11, which are the vector unit.
const ACCESS: u32 = 0xF << 20;

/// Switches it on; kernels of the feature `helium` need that.
pub fn switch_on(scb: &mut SCB) {
    // SAFETY: access to the vector unit is only added. No code of this program depends on its instructions trapping, and the barriers
    // order the write before the first of them.
    unsafe { scb.cpacr.modify(|access| access | ACCESS) };
    dsb();
    isb();
}
