//! Instruction sets: which layout of weights each of them wants.

use crate::format::blocks::Layout;

/// What a file is laid out for, or what a machine executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Any machine: row-major weights, generic kernels.
    Generic,
    /// Cortex-M0, M0+, M1.
    ArmV6M,
    /// Cortex-M3.
    ArmV7M,
    /// Cortex-M4, M7, M33: the DSP extension.
    ArmDsp,
    /// Cortex-M55, M85: the vector extension.
    Helium,
    /// RISC-V, 32 bits, with multiplication.
    RiscV,
}

impl Isa {
    /// The set that this crate was compiled for, as far as that is known without looking at the machine.
    pub const COMPILED: Isa = if cfg!(pith_helium) {
        Isa::Helium
    } else if cfg!(pith_dsp) {
        Isa::ArmDsp
    } else if cfg!(pith_v6m) {
        Isa::ArmV6M
    } else if cfg!(pith_v7m) {
        Isa::ArmV7M
    } else if cfg!(pith_riscv) {
        Isa::RiscV
    } else {
        Isa::Generic
    };

    /// How its kernels want weights; none for row-major.
    pub const fn layout(self) -> Option<Layout> {
        match self {
            Isa::Generic => None,
            Isa::ArmV6M | Isa::ArmV7M | Isa::RiscV => Some(Layout::Quads),
            Isa::ArmDsp => Some(Layout::Pairs),
            Isa::Helium => Some(Layout::Rows),
        }
    }
}
