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
    /// Any x86-64.
    Sse2,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 and its VNNI.
    Avx512Vnni,
    /// x86-64 with AMX for 8 bits.
    Amx,
    /// Any aarch64.
    Neon,
    /// aarch64 with the dot product.
    DotProd,
    /// aarch64 with the 8-bit matrix product.
    I8mm,
}

/// Sets of desktops, which are looked up on the machine, from the plainest to the best.
#[cfg(pith_desktop)]
const LOOKED_UP: [Isa; 8] =
    [Isa::Sse2, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni, Isa::Amx, Isa::Neon, Isa::DotProd, Isa::I8mm];

/// Sets and their names.
const NAMES: [(Isa, &str); 14] = [
    (Isa::Generic, "generic"),
    (Isa::ArmV6M, "armv6m"),
    (Isa::ArmV7M, "armv7m"),
    (Isa::ArmDsp, "armdsp"),
    (Isa::Helium, "helium"),
    (Isa::RiscV, "riscv"),
    (Isa::Sse2, "sse2"),
    (Isa::Avx2, "avx2"),
    (Isa::AvxVnni, "avxvnni"),
    (Isa::Avx512Vnni, "avx512vnni"),
    (Isa::Amx, "amx"),
    (Isa::Neon, "neon"),
    (Isa::DotProd, "dotprod"),
    (Isa::I8mm, "i8mm"),
];

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
            Isa::ArmV6M | Isa::ArmV7M | Isa::RiscV => Some(Layout::Quads),
            Isa::ArmDsp => Some(Layout::Pairs),
            Isa::Helium => Some(Layout::Rows),
            _ => None,
        }
    }

    /// As in `PITH_ISA` and reports.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(isa, _)| *isa == self).map_or("", |(_, name)| name)
    }

    /// The sets of this machine, best last; each is one that [`crate::Engine::with_workspace`] takes.
    pub fn available() -> impl Iterator<Item = Isa> {
        #[cfg(pith_desktop)]
        let found = LOOKED_UP.into_iter().filter(|&isa| crate::kernels::table(isa).is_some());
        #[cfg(not(pith_desktop))]
        let found = core::iter::empty();
        found
    }

    /// The best set of this machine.
    pub fn detect() -> Isa {
        Isa::available().last().unwrap_or(Isa::COMPILED)
    }
}
