//! The bytes between host and board: a serial port, or the UART of an emulated board on a socket.

use super::board::Board;
use crate::qemu::decode_log;
use crate::{ToolError, has};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a read waits for a byte.
pub const WAIT: Duration = Duration::from_millis(20);

/// A line; a read gives up after a while with an error of kind `TimedOut` or `WouldBlock`.
pub trait Line: Read + Write + Send {}

impl<T: Read + Write + Send> Line for T {}

/// A serial port.
pub fn serial(port: &str, baud: u32) -> Result<Box<dyn Line>, ToolError> {
    let opened = serialport::new(port, baud).timeout(WAIT).open();
    Ok(Box::new(
        opened.map_err(|e| ToolError(format!("{port}: {e}; is the board plugged in, and is its port another?")))?,
    ))
}

/// A running emulator; it ends with this value.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    folder: tempfile::TempDir,
    elf: std::path::PathBuf,
}

impl Emulator {
    /// Starts a board with a program, `model` lying in its first slot, and gives its line. `count` makes an instruction a nanosecond.
    pub fn start(
        board: &Board,
        elf: &Path,
        model: Option<&[u8]>,
        count: bool,
    ) -> Result<(Emulator, UnixStream), ToolError> {
        if !has("qemu-system-arm") {
            return Err(ToolError::new("no qemu-system-arm; `cargo xtask setup` installs it"));
        }
        let machine = board.machine.as_deref();
        let machine = machine.ok_or_else(|| ToolError(format!("the emulator does not know {}", board.name)))?;
        let said = |e: std::io::Error| ToolError(format!("cannot start the emulator: {e}"));
        let folder = tempfile::tempdir().map_err(said)?;
        let socket = folder.path().join("line");
        let log = File::create(folder.path().join("log")).map_err(said)?;
        let mut qemu = Command::new("qemu-system-arm");
        qemu.args(["-machine", machine, "-display", "none", "-monitor", "none"])
            .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
            .arg(elf)
            // It waits for the other end before it starts the core.
            .arg("-chardev")
            .arg(format!("socket,id=line,path={},server=on,wait=on", socket.display()))
            .args(["-serial", "chardev:line"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(said)?)
            .stderr(log);
        if count {
            qemu.args(["-icount", "shift=0"]);
        }
        if let Some(model) = model {
            let image = folder.path().join("slot.bin");
            let head = pith_link::slots::head(0, model.len() as u32);
            std::fs::write(&image, [&head, model].concat()).map_err(said)?;
            let device = format!("loader,file={},addr={:#x},force-raw=on", image.display(), board.slots.origin);
            qemu.args(["-device", &device]);
        }
        let mut emulator = Emulator { child: qemu.spawn().map_err(said)?, folder, elf: elf.to_path_buf() };
        let line = emulator.connect(&socket)?;
        line.set_read_timeout(Some(WAIT)).map_err(said)?;
        Ok((emulator, line))
    }

    fn connect(&mut self, socket: &Path) -> Result<UnixStream, ToolError> {
        let started = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(line) => return Ok(line),
                Err(_) if started.elapsed() < Duration::from_secs(20) => {}
                Err(error) => return Err(ToolError(format!("the emulator opens no line: {error}"))),
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(ToolError(format!("the emulator ended ({status}): {}", self.log().join("; "))));
            }
            std::thread::sleep(WAIT);
        }
    }

    /// What the program has logged.
    pub fn log(&self) -> Vec<String> {
        decode_log(&self.elf, &std::fs::read(self.folder.path().join("log")).unwrap_or_default())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
