//! Targets by name: what weights are laid out for.

use pith::Isa;

/// A core, or a board by its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// As on the command line.
    pub name: &'static str,
    /// Its instruction set.
    pub isa: Isa,
}

/// All of them; the first is the default.
pub const TARGETS: [Target; 10] = [
    Target { name: "portable", isa: Isa::Generic },
    Target { name: "cortex-m0", isa: Isa::ArmV6M },
    Target { name: "cortex-m0plus", isa: Isa::ArmV6M },
    Target { name: "cortex-m3", isa: Isa::ArmV7M },
    Target { name: "cortex-m4", isa: Isa::ArmDsp },
    Target { name: "cortex-m7", isa: Isa::ArmDsp },
    Target { name: "cortex-m33", isa: Isa::ArmDsp },
    Target { name: "cortex-m55", isa: Isa::Helium },
    Target { name: "riscv32", isa: Isa::RiscV },
    Target { name: "nucleo-l4r5zi", isa: Isa::ArmDsp },
];

impl Target {
    /// The target of this name.
    pub fn find(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}
