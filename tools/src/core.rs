//! Emulated cores: which target they execute, on which machine, and how SysTick relates to instructions there.

use pith::Isa;

/// A Cortex-M core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Core {
    /// Cortex-M0 (v6-M code): on the micro:bit where the model fits, else on an M3, which executes it unchanged.
    M0,
    /// Cortex-M3.
    M3,
    /// Cortex-M4F.
    M4,
    /// Cortex-M7.
    M7,
    /// Cortex-M33.
    M33,
    /// Cortex-M55.
    M55,
}

/// Where a core's code runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// `-machine` of QEMU.
    pub machine: &'static str,
    /// Memory map in `firmware/boards`.
    pub board: &'static str,
    /// Rust target.
    pub target: &'static str,
    /// Feature of the firmware: the core's extension, where the target does not say.
    pub feature: Option<&'static str>,
    /// Instructions per SysTick tick under `-icount shift=0` (nanoseconds per tick of the core clock).
    pub instructions_per_tick: f64,
}

impl Core {
    /// All of them.
    pub const ALL: [Core; 6] = [Core::M0, Core::M3, Core::M4, Core::M7, Core::M33, Core::M55];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Core::M0 => "m0",
            Core::M3 => "m3",
            Core::M4 => "m4",
            Core::M7 => "m7",
            Core::M33 => "m33",
            Core::M55 => "m55",
        }
    }

    /// What a file should be laid out for.
    pub fn isa(self) -> Isa {
        match self {
            Core::M0 => Isa::ArmV6M,
            Core::M3 => Isa::ArmV7M,
            Core::M4 | Core::M7 | Core::M33 => Isa::ArmDsp,
            Core::M55 => Isa::Helium,
        }
    }

    /// The machine for a model of so many bytes of file (inputs included) and arena.
    pub fn machine(self, flash: usize, arena: usize) -> Machine {
        let mps2 = |machine, target| Machine {
            machine,
            board: "mps2-an385",
            target,
            feature: None,
            instructions_per_tick: 40.0,
        };
        match self {
            // 256 KB of flash and 16 KB of RAM, less program and stack.
            Core::M0 if flash <= 160 * 1024 && arena <= 10 * 1024 => Machine {
                machine: "microbit",
                board: "microbit",
                target: "thumbv6m-none-eabi",
                feature: None,
                instructions_per_tick: 62.5,
            },
            Core::M0 => mps2("mps2-an385", "thumbv6m-none-eabi"),
            Core::M3 => mps2("mps2-an385", "thumbv7m-none-eabi"),
            Core::M4 => mps2("mps2-an386", "thumbv7em-none-eabihf"),
            Core::M7 => mps2("mps2-an500", "thumbv7em-none-eabihf"),
            Core::M33 => Machine {
                machine: "mps2-an505",
                board: "mps2-an505",
                target: "thumbv8m.main-none-eabi",
                feature: Some("dsp"),
                instructions_per_tick: 50.0,
            },
            Core::M55 => Machine {
                machine: "mps3-an547",
                board: "mps3-an547",
                target: "thumbv8m.main-none-eabi",
                feature: Some("helium"),
                instructions_per_tick: 31.25,
            },
        }
    }
}
