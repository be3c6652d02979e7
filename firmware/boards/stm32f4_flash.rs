//! The flash of STM32F4 boards.

use embassy_stm32::flash::{Blocking, Error, Flash, MAX_ERASE_SIZE, READ_SIZE, WRITE_SIZE};
use embassy_stm32::pac::FLASH;
use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

/// The flash. Its data cache follows what is written, but not what is erased, and the HAL does not empty it.
pub struct Sectors(pub Flash<'static, Blocking>);

impl ErrorType for Sectors {
    type Error = Error;
}

impl ReadNorFlash for Sectors {
    const READ_SIZE: usize = READ_SIZE;

    fn read(&mut self, offset: u32, to: &mut [u8]) -> Result<(), Error> {
        self.0.read(offset, to)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl NorFlash for Sectors {
    const WRITE_SIZE: usize = WRITE_SIZE;
    const ERASE_SIZE: usize = MAX_ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Error> {
        let result = self.0.erase(from, to);
        // Only while it is off.
        FLASH.acr().modify(|acr| acr.set_dcen(false));
        FLASH.acr().modify(|acr| acr.set_dcrst(true));
        FLASH.acr().modify(|acr| acr.set_dcrst(false));
        FLASH.acr().modify(|acr| acr.set_dcen(true));
        result
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.0.write(offset, bytes)
    }
}
