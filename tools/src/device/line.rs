//! The bytes between host and board: a serial port, or the UART of an emulated board on a Unix socket.

use super::board::Board;
use crate::qemu::decode_log;
use crate::{ToolError, has};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a read waits for a byte.
pub const WAIT: Duration = Duration::from_millis(20);

/// A line; a read gives up after a while with an error of kind `TimedOut` or `WouldBlock`.
pub trait Line: Read + Write + Send {}

impl<T: Read + Write + Send> Line for T {}

/// A serial port, or the socket of an emulated board that [`Emulator::start_at`] has started.
pub fn serial(port: &str, baud: u32) -> Result<Box<dyn Line>, ToolError> {
    if std::fs::metadata(port).is_ok_and(|file| file.file_type().is_socket()) {
        let opened = UnixStream::connect(port).and_then(|line| line.set_read_timeout(Some(WAIT)).map(|()| line));
        return Ok(Box::new(opened.map_err(|e| ToolError(format!("{port}: {e}; has its emulator ended?")))?));
    }
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
    elf: PathBuf,
    /// A line's socket that is no part of the folder.
    socket: Option<PathBuf>,
}

fn said(error: std::io::Error) -> ToolError {
    ToolError(format!("cannot start the emulator: {error}"))
}

impl Emulator {
    /// Starts a board with a program, `model` lying in its first slot, and gives its line. `count` makes an instruction a nanosecond.
    pub fn start(
        board: &Board,
        elf: &Path,
        model: Option<&[u8]>,
        count: bool,
    ) -> Result<(Emulator, UnixStream), ToolError> {
        let folder = tempfile::tempdir().map_err(said)?;
        let socket = folder.path().join("line");
        // It waits for the other end before it starts the core.
        let line = format!("socket,id=line,path={},server=on,wait=on", socket.display());
        let extra: &[&str] = if count { &["-icount", "shift=0"] } else { &[] };
        let mut emulator = Emulator::with(board, elf, model, folder, &line, extra)?;
        let line = emulator.connect(&socket)?;
        line.set_read_timeout(Some(WAIT)).map_err(said)?;
        Ok((emulator, line))
    }

    /// As [`Emulator::start`], with the line at a socket for whoever comes, one after another.
    pub fn start_at(board: &Board, elf: &Path, model: Option<&[u8]>, socket: &Path) -> Result<Emulator, ToolError> {
        if socket.exists() {
            return Err(ToolError(format!("{} exists; is another board served there? Remove it", socket.display())));
        }
        let line = format!("socket,id=line,path={},server=on,wait=off", socket.display());
        let folder = tempfile::tempdir().map_err(said)?;
        let mut emulator = Emulator::with(board, elf, model, folder, &line, &[])?;
        drop(emulator.connect(socket)?);
        emulator.socket = Some(socket.to_path_buf());
        Ok(emulator)
    }

    fn with(
        board: &Board,
        elf: &Path,
        model: Option<&[u8]>,
        folder: tempfile::TempDir,
        line: &str,
        extra: &[&str],
    ) -> Result<Emulator, ToolError> {
        if !has("qemu-system-arm") {
            return Err(ToolError::new("no qemu-system-arm; `cargo xtask setup` installs it"));
        }
        let machine = board.machine.as_deref();
        let machine = machine.ok_or_else(|| ToolError(format!("the emulator does not know {}", board.name)))?;
        let create = |name: &str| File::create(folder.path().join(name)).map_err(said);
        let mut qemu = Command::new("qemu-system-arm");
        qemu.args(["-machine", machine, "-display", "none", "-monitor"])
            // For resets.
            .arg(format!("unix:{},server=on,wait=off", folder.path().join("monitor").display()))
            .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
            .arg(elf)
            .args(["-chardev", line, "-serial", "chardev:line"])
            .args(extra)
            .stdin(Stdio::null())
            .stdout(create("log")?)
            .stderr(create("errors")?);
        if let Some(model) = model {
            let image = folder.path().join("slot.bin");
            let head = pith_link::slots::head(0, model.len() as u32);
            std::fs::write(&image, [&head, model].concat()).map_err(said)?;
            let device = format!("loader,file={},addr={:#x},force-raw=on", image.display(), board.slots.origin);
            qemu.args(["-device", &device]);
        }
        Ok(Emulator { child: qemu.spawn().map_err(said)?, folder, elf: elf.to_path_buf(), socket: None })
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resets the board as its button does: flash keeps what was written.
    pub fn reset(&self) -> Result<(), ToolError> {
        let monitor = UnixStream::connect(self.folder.path().join("monitor"));
        monitor.and_then(|mut monitor| monitor.write_all(b"system_reset\n")).map_err(said)
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

    /// What the program has logged, and then what the emulator has to say, apart from that it waits for the other end of the line.
    pub fn log(&self) -> Vec<String> {
        let read = |name: &str| std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        let mut log = decode_log(&self.elf, &read("log"));
        let errors = String::from_utf8_lossy(&read("errors")).into_owned();
        log.extend(errors.lines().filter(|line| !line.contains("waiting for connection")).map(String::from));
        log
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}
