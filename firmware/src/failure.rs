//! How programs fail in the emulator: with a line of the log, and its end.

use crate::host;
use defmt_semihosting as _;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    defmt::error!("panic: {}", defmt::Display2Format(info));
    host::exit(false)
}

/// A wild access or an unknown instruction ends the emulator instead of hanging it.
#[cfg(target_arch = "arm")]
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    defmt::error!("hard fault at {:#x}", frame.pc());
    host::exit(false)
}

/// The same on RISC-V.
#[cfg(target_arch = "riscv32")]
// SAFETY: riscv-rt calls this symbol with this signature, and its linker script provides another only where there is none.
#[unsafe(no_mangle)]
extern "C" fn ExceptionHandler(_: &riscv_rt::TrapFrame) -> ! {
    defmt::error!("exception at {:#x}", riscv::register::mepc::read());
    host::exit(false)
}
