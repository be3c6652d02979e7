//! Memory-mapped registers, for the boards whose own start-up is all that stands between them and the emulator.

use core::ptr::{read_volatile, write_volatile};

/// A 32-bit register.
#[derive(Clone, Copy, Debug)]
pub struct Register(usize);

impl Register {
    /// The register at an address.
    ///
    /// # Safety
    ///
    /// The address is that of a 32-bit register of this chip, at which reads and writes of any word keep memory safe: it starts no transfer
    /// into memory that Rust knows of.
    pub const unsafe fn at(address: usize) -> Register {
        Register(address)
    }

    /// Its word.
    pub fn read(self) -> u32 {
        // SAFETY: the address is that of a register, as whoever made it promised.
        unsafe { read_volatile(self.0 as *const u32) }
    }

    /// Writes a word.
    pub fn write(self, word: u32) {
        // SAFETY: as above, and the write keeps memory safe.
        unsafe { write_volatile(self.0 as *mut u32, word) }
    }

    /// Sets and clears bits.
    pub fn modify(self, set: u32, clear: u32) {
        self.write(self.read() & !clear | set);
    }

    /// Waits until all of some bits are set.
    pub fn wait_for(self, bits: u32) {
        while self.read() & bits != bits {}
    }
}
