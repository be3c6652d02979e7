//! Files on the machine that runs the emulator.

use core::ffi::CStr;
use embedded_io::{ErrorKind, ErrorType, Read, Write};

/// A file on the host, open for reading or for writing.
#[derive(Debug)]
pub struct HostFile(semihosting::fs::File);

/// The host refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostError;

impl core::fmt::Display for HostError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the host refused a file operation")
    }
}

impl core::error::Error for HostError {}

impl embedded_io::Error for HostError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

impl HostFile {
    /// Opens a file in the emulator's working folder.
    pub fn open(name: &CStr) -> Result<HostFile, HostError> {
        semihosting::fs::File::open(name).map(HostFile).map_err(|_| HostError)
    }

    /// Creates or empties a file in the emulator's working folder.
    pub fn create(name: &CStr) -> Result<HostFile, HostError> {
        semihosting::fs::File::create(name).map(HostFile).map_err(|_| HostError)
    }
}

impl ErrorType for HostFile {
    type Error = HostError;
}

impl Read for HostFile {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, HostError> {
        semihosting::io::Read::read(&mut self.0, bytes).map_err(|_| HostError)
    }
}

impl Write for HostFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, HostError> {
        semihosting::io::Write::write(&mut self.0, bytes).map_err(|_| HostError)
    }

    fn flush(&mut self) -> Result<(), HostError> {
        Ok(())
    }
}

/// Ends the emulator.
pub fn exit(success: bool) -> ! {
    semihosting::process::exit(i32::from(!success))
}
