//! What a model is built for: a core, or a board with its memory, from `quantize/targets/*.toml` or a file of the user's own.
//!
//! ```toml
//! core = "cortex-m4"
//! clock_mhz = 120
//! flash_bytes = 2_097_152
//! ram_bytes = 655_360
//! ```

use pith::Isa;
use serde::Deserialize;
use std::path::Path;

/// A core or a board.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// As on the command line.
    pub name: String,
    /// Its instruction set.
    pub isa: Isa,
    /// Clock of a board; a core has none by itself.
    pub clock_mhz: Option<f64>,
    /// Flash of a board, of which the program takes its part too.
    pub flash_bytes: Option<u64>,
    /// RAM of a board, the stack's and the program's included.
    pub ram_bytes: Option<u64>,
}

/// A target's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    core: String,
    clock_mhz: Option<f64>,
    flash_bytes: Option<u64>,
    ram_bytes: Option<u64>,
}

/// Cores and their instruction sets; the first is the default, and means any machine.
const CORES: [(&str, Isa); 9] = [
    ("portable", Isa::Generic),
    ("cortex-m0", Isa::ArmV6M),
    ("cortex-m0plus", Isa::ArmV6M),
    ("cortex-m3", Isa::ArmV7M),
    ("cortex-m4", Isa::ArmDsp),
    ("cortex-m7", Isa::ArmDsp),
    ("cortex-m33", Isa::ArmDsp),
    ("cortex-m55", Isa::Helium),
    ("riscv32", Isa::RiscV),
];

/// Boards that come with the command.
const BOARDS: [(&str, &str); 13] = [
    ("nucleo-l4r5zi", include_str!("../targets/nucleo-l4r5zi.toml")),
    ("nucleo-f446re", include_str!("../targets/nucleo-f446re.toml")),
    ("stm32f405", include_str!("../targets/stm32f405.toml")),
    ("netduinoplus2", include_str!("../targets/stm32f405.toml")),
    ("stm32f4-discovery", include_str!("../targets/stm32f405.toml")),
    ("nrf52840-dk", include_str!("../targets/nrf52840-dk.toml")),
    ("microbit", include_str!("../targets/microbit.toml")),
    ("rp2040-pico", include_str!("../targets/rp2040-pico.toml")),
    ("rp2350-pico2", include_str!("../targets/rp2350-pico2.toml")),
    ("mps3-an547", include_str!("../targets/mps3-an547.toml")),
    ("esp32-c3", include_str!("../targets/esp32-c3.toml")),
    ("desktop-x86-64", include_str!("../targets/desktop-x86-64.toml")),
    ("desktop-aarch64", include_str!("../targets/desktop-aarch64.toml")),
];

/// Why there is no such target.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum TargetError {
    #[error(
        "no target '{name}'; choose one of {known}, or the path of a .toml file with core, clock_mhz, flash_bytes, ram_bytes"
    )]
    Unknown { name: String, known: String },
    #[error("{file}: {what}")]
    File { file: String, what: String },
    #[error("{file}: no core '{core}'; choose one of {known}")]
    Core { file: String, core: String, known: String },
}

impl Target {
    /// A core, a board that comes with the command, or the file of another.
    pub fn find(name: &str) -> Result<Target, TargetError> {
        if let Some(&(name, isa)) = CORES.iter().find(|(core, _)| *core == name) {
            return Ok(Target { name: name.into(), isa, clock_mhz: None, flash_bytes: None, ram_bytes: None });
        }
        if let Some((name, text)) = BOARDS.iter().find(|(board, _)| *board == name) {
            return Target::parse(name, text);
        }
        if name.ends_with(".toml") {
            let failed = |e: std::io::Error| TargetError::File { file: name.into(), what: e.to_string() };
            return Target::parse(name, &std::fs::read_to_string(Path::new(name)).map_err(failed)?);
        }
        Err(TargetError::Unknown { name: name.into(), known: Target::names().join(", ") })
    }

    /// All that have a name.
    pub fn names() -> Vec<&'static str> {
        CORES.iter().map(|(name, _)| *name).chain(BOARDS.iter().map(|(name, _)| *name)).collect()
    }

    fn parse(name: &str, text: &str) -> Result<Target, TargetError> {
        let failed = |e: toml::de::Error| {
            let what = e.message().lines().map(str::trim).collect::<Vec<_>>().join(" ");
            TargetError::File { file: name.into(), what }
        };
        let file: File = toml::from_str(text).map_err(failed)?;
        let known = || CORES.map(|(core, _)| core).join(", ");
        let isa = CORES.iter().find(|(core, _)| *core == file.core).map(|(_, isa)| *isa);
        let isa = isa.ok_or_else(|| TargetError::Core { file: name.into(), core: file.core, known: known() })?;
        if let Some(mhz) = file.clock_mhz.filter(|mhz| !(mhz.is_finite() && *mhz > 0.0)) {
            return Err(TargetError::File {
                file: name.into(),
                what: format!("clock_mhz is {mhz}; it must be positive"),
            });
        }
        let name = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy().into_owned());
        let File { clock_mhz, flash_bytes, ram_bytes, .. } = file;
        Ok(Target { name, isa, clock_mhz, flash_bytes, ram_bytes })
    }

    /// Says what a model that takes so many bytes of flash and of RAM exceeds.
    pub fn exceeded(&self, flash_bytes: u64, ram_bytes: u64) -> Option<String> {
        let over = |what: &str, bytes: u64, limit: Option<u64>| {
            let limit = limit.filter(|&limit| bytes > limit)?;
            Some(format!("the model takes {bytes} B of {what}, {} has {limit} B", self.name))
        };
        over("flash", flash_bytes, self.flash_bytes).or_else(|| over("RAM", ram_bytes, self.ram_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_boards_have_memory() {
        for name in Target::names() {
            let target = Target::find(name).unwrap();
            assert_eq!(target.name, name);
            let is_board = BOARDS.iter().any(|(board, _)| *board == name) && target.isa != Isa::Generic;
            assert_eq!(
                target.flash_bytes.is_some() && target.ram_bytes.is_some() && target.clock_mhz.is_some(),
                is_board
            );
        }
    }

    #[test]
    fn own_files_are_read_and_bad_ones_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = folder.path().join("mine.toml");
            std::fs::write(&path, text).unwrap();
            Target::find(path.to_str().unwrap())
        };
        let mine = file("core = \"cortex-m7\"\nram_bytes = 1000").unwrap();
        assert_eq!((mine.name.as_str(), mine.isa), ("mine", Isa::ArmDsp));
        assert_eq!(mine.exceeded(1 << 30, 1000), None);
        assert_eq!(mine.exceeded(0, 1001).unwrap(), "the model takes 1001 B of RAM, mine has 1000 B");
        for (text, wanted) in [
            ("core = \"cortex-m9\"", "no core 'cortex-m9'"),
            ("clock_mhz = 3", "missing field `core`"),
            ("core = \"cortex-m4\"\nflash = 3", "unknown field `flash`"),
            ("core = \"cortex-m4\"\nclock_mhz = -1.0", "clock_mhz is -1"),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(Target::find("nucleo").unwrap_err().to_string().contains("nucleo-l4r5zi"));
        assert!(Target::find("/absent/board.toml").is_err());
    }
}
