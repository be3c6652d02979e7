//! Flash inside of a chip, seen by `embedded-storage`: readable where it lies, written in words of 32 bits, erased in sectors by a
//! controller that differs from chip to chip.

use core::ptr::write_volatile;
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use pith_link::slots::Store;

/// What a chip does to its flash.
pub trait Controller {
    /// Bytes of a sector.
    const ERASE_BYTES: usize;

    /// Erases the sector that begins at an address.
    fn erase(&mut self, address: usize);

    /// Lets words be written while `write` runs, one at a time, each followed by a call of [`Controller::wait`].
    fn writing(&mut self, is_on: bool);

    /// Waits until the last operation is over.
    fn wait(&mut self);
}

/// A range of flash.
#[derive(Debug)]
pub struct Flash<C> {
    controller: C,
    origin: usize,
    bytes: usize,
}

impl<C: Controller> Flash<C> {
    /// The range.
    ///
    /// # Safety
    ///
    /// It is flash of this chip, readable from now on for ever, holds neither code nor data of the program, and no other value writes it. It is
    /// used by [`pith_link::slots::Slots`], or by what as well never erases or writes where a slice of [`Store::mapped`] is still in use.
    pub const unsafe fn new(controller: C, origin: usize, bytes: usize) -> Flash<C> {
        Flash { controller, origin, bytes }
    }
}

impl<C> ErrorType for Flash<C> {
    type Error = NorFlashErrorKind;
}

impl<C: Controller> ReadNorFlash for Flash<C> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, to: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        check_read(self, offset, to.len())?;
        to.copy_from_slice(self.mapped(offset as usize, to.len()));
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes
    }
}

impl<C: Controller> NorFlash for Flash<C> {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = C::ERASE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        check_erase(self, from, to)?;
        for offset in (from as usize..to as usize).step_by(C::ERASE_BYTES) {
            self.controller.erase(self.origin + offset);
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        check_write(self, offset, bytes.len())?;
        self.controller.writing(true);
        let (words, _) = bytes.as_chunks::<4>();
        for (i, word) in words.iter().enumerate() {
            let address = self.origin + offset as usize + 4 * i;
            // SAFETY: the word lies in this range (`check_write`), which is flash that nothing but this value writes, as whoever made it
            // promised; slices of it are not in use, as `Store::mapped` asks.
            unsafe { write_volatile(address as *mut u32, u32::from_le_bytes(*word)) };
            self.controller.wait();
        }
        self.controller.writing(false);
        Ok(())
    }
}

impl<C: Controller> Store for Flash<C> {
    fn mapped(&self, offset: usize, bytes: usize) -> &'static [u8] {
        if offset > self.bytes || bytes > self.bytes - offset {
            return &[];
        }
        // SAFETY: the range lies in this flash, which is readable for ever; it does not change while the slice is used, since callers use it
        // only between writes.
        unsafe { core::slice::from_raw_parts((self.origin + offset) as *const u8, bytes) }
    }
}
