//! Targets by name: what weights are laid out for.

use pith::Isa;

/// A core, or a board by its core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// As on the command line.
    pub name: &'static str,
    /// Its instruction set.
    pub isa: Isa,
    /// Clock of a board; a core has none by itself.
    pub clock_mhz: Option<f64>,
}

/// All of them; the first is the default.
pub const TARGETS: [Target; 10] = [
    core("portable", Isa::Generic),
    core("cortex-m0", Isa::ArmV6M),
    core("cortex-m0plus", Isa::ArmV6M),
    core("cortex-m3", Isa::ArmV7M),
    core("cortex-m4", Isa::ArmDsp),
    core("cortex-m7", Isa::ArmDsp),
    core("cortex-m33", Isa::ArmDsp),
    core("cortex-m55", Isa::Helium),
    core("riscv32", Isa::RiscV),
    Target { name: "nucleo-l4r5zi", isa: Isa::ArmDsp, clock_mhz: Some(120.0) },
];

const fn core(name: &'static str, isa: Isa) -> Target {
    Target { name, isa, clock_mhz: None }
}

impl Target {
    /// The target of this name.
    pub fn find(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}
