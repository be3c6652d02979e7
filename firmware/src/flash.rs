//! Flash that is readable where it lies, seen by `embedded-storage`.
//!
//! - [`Mapped`]: behind a HAL's driver;
//! - [`Flash`]: written in words of 32 bits and erased in sectors by a [`Controller`] of a board's own, where no HAL will do.

use core::ptr::write_volatile;
use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use pith_link::slots::Store;

/// The slice of memory, empty if it is not within `region`.
///
/// # Safety
///
/// `region` (first address, bytes) is readable for ever, and the slice is used only while it does not change.
unsafe fn memory(region: (usize, usize), offset: usize, bytes: usize) -> &'static [u8] {
    if offset > region.1 || bytes > region.1 - offset {
        return &[];
    }
    // SAFETY: the range lies in the region, of which the caller says the rest.
    unsafe { core::slice::from_raw_parts((region.0 + offset) as *const u8, bytes) }
}

/// A range of the flash that a HAL's driver erases and writes.
#[derive(Debug)]
pub struct Mapped<F> {
    driver: F,
    /// Where the range begins for the driver.
    first: u32,
    origin: usize,
    bytes: usize,
}

impl<F: NorFlash> Mapped<F> {
    /// The range that begins at `first` for the driver and can be read at the address `origin`.
    ///
    /// # Safety
    ///
    /// See [`Flash::new`].
    pub const unsafe fn new(driver: F, first: u32, origin: usize, bytes: usize) -> Mapped<F> {
        Mapped { driver, first, origin, bytes }
    }
}

impl<F> ErrorType for Mapped<F> {
    type Error = NorFlashErrorKind;
}

impl<F: NorFlash> ReadNorFlash for Mapped<F> {
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

impl<F: NorFlash> NorFlash for Mapped<F> {
    const WRITE_SIZE: usize = F::WRITE_SIZE;
    const ERASE_SIZE: usize = F::ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        check_erase(self, from, to)?;
        self.driver.erase(self.first + from, self.first + to).map_err(|e| e.kind())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        check_write(self, offset, bytes.len())?;
        self.driver.write(self.first + offset, bytes).map_err(|e| e.kind())
    }
}

impl<F: NorFlash> Store for Mapped<F> {
    fn mapped(&self, offset: usize, bytes: usize) -> &'static [u8] {
        // SAFETY: flash that is readable for ever, as whoever made this value promised; callers use the slice only between writes.
        unsafe { memory((self.origin, self.bytes), offset, bytes) }
    }
}

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
        // SAFETY: flash that is readable for ever, as whoever made this value promised; callers use the slice only between writes.
        unsafe { memory((self.origin, self.bytes), offset, bytes) }
    }
}
