//! How programs of emulated cores start, and what counts their instructions.

use crate::counter::Counter;

#[cfg(target_arch = "arm")]
pub use {cortex_m::singleton, cortex_m_rt::entry};
#[cfg(target_arch = "riscv32")]
pub use {riscv::singleton, riscv_rt::entry};

/// The core's counter, and its extensions switched on; once.
#[cfg(target_arch = "arm")]
pub fn counter() -> Option<Counter> {
    let mut core = cortex_m::Peripherals::take()?;
    #[cfg(feature = "helium")]
    crate::vector::switch_on(&mut core.SCB);
    Some(Counter::systick(&mut core.SYST))
}

/// The core's counter.
#[cfg(target_arch = "riscv32")]
pub fn counter() -> Option<Counter> {
    Some(Counter::retired())
}
