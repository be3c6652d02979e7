//! Emulated cores: which target they execute, on which machine, and how its counter relates to instructions.

use pith::Isa;

/// A core.
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
    /// RISC-V of 32 bits with multiplication, without atomics: RV32IMC.
    #[value(name = "riscv")]
    RiscV,
}

/// Where a core's code runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// QEMU's program.
    pub emulator: &'static str,
    /// Its `-machine`.
    pub machine: &'static str,
    /// Memory map in `firmware/boards`.
    pub board: &'static str,
    /// Rust target.
    pub target: &'static str,
    /// Feature of the firmware: the core's extension, where the target does not say.
    pub feature: Option<&'static str>,
    /// Instructions per tick of the counter under `-icount shift=0`: of SysTick, nanoseconds per tick of the core clock.
    pub instructions_per_tick: f64,
    /// Bits of the counter.
    pub counter_bits: u32,
}

impl Core {
    /// All of them.
    pub const ALL: [Core; 7] = [Core::M0, Core::M3, Core::M4, Core::M7, Core::M33, Core::M55, Core::RiscV];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Core::M0 => "m0",
            Core::M3 => "m3",
            Core::M4 => "m4",
            Core::M7 => "m7",
            Core::M33 => "m33",
            Core::M55 => "m55",
            Core::RiscV => "riscv",
        }
    }

    /// What a file should be laid out for.
    pub fn isa(self) -> Isa {
        match self {
            Core::M0 => Isa::ArmV6M,
            Core::M3 => Isa::ArmV7M,
            Core::M4 | Core::M7 | Core::M33 => Isa::ArmDsp,
            Core::M55 => Isa::Helium,
            Core::RiscV => Isa::RiscV,
        }
    }

    /// The machine for a model of so many bytes of file (inputs included) and arena.
    pub fn machine(self, flash: usize, arena: usize) -> Machine {
        let arm = |machine, target| Machine {
            emulator: "qemu-system-arm",
            machine,
            board: "mps2-an385",
            target,
            feature: None,
            instructions_per_tick: 40.0,
            counter_bits: 24,
        };
        match self {
            // 256 KB of flash and 16 KB of RAM, less program and stack.
            Core::M0 if flash <= 160 * 1024 && arena <= 10 * 1024 => {
                Machine { board: "microbit", instructions_per_tick: 62.5, ..arm("microbit", "thumbv6m-none-eabi") }
            }
            Core::M0 => arm("mps2-an385", "thumbv6m-none-eabi"),
            Core::M3 => arm("mps2-an385", "thumbv7m-none-eabi"),
            Core::M4 => arm("mps2-an386", "thumbv7em-none-eabihf"),
            Core::M7 => arm("mps2-an500", "thumbv7em-none-eabihf"),
            Core::M33 => Machine {
                board: "mps2-an505",
                feature: Some("dsp"),
                instructions_per_tick: 50.0,
                ..arm("mps2-an505", "thumbv8m.main-none-eabi")
            },
            Core::M55 => Machine {
                board: "mps3-an547",
                feature: Some("helium"),
                instructions_per_tick: 31.25,
                ..arm("mps3-an547", "thumbv8m.main-none-eabi")
            },
            Core::RiscV => Machine {
                emulator: "qemu-system-riscv32",
                machine: "virt",
                board: "virt",
                target: "riscv32imc-unknown-none-elf",
                feature: None,
                instructions_per_tick: 1.0,
                counter_bits: 32,
            },
        }
    }
}
