//! A flash that loses power: a write or an erase stops after a given number of bytes, and everything after it fails.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_write};
use pith_link::slots::Store;
use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Bytes of a word.
pub const WORD: usize = 8;

/// What survives a loss of power, and how many bytes may change before it.
#[derive(Clone, Debug)]
pub struct Flash {
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub left: Rc<RefCell<usize>>,
}

impl Flash {
    /// Of so many bytes, full of what was there before.
    pub fn new(capacity: usize) -> Flash {
        let bytes = (0..capacity).map(|i| (i * 31 % 251) as u8).collect();
        Flash { bytes: Rc::new(RefCell::new(bytes)), left: Rc::new(RefCell::new(usize::MAX)) }
    }

    fn change(&self, offset: usize, new: impl Iterator<Item = u8>) -> Result<(), NorFlashErrorKind> {
        let (mut bytes, mut left) = (self.bytes.borrow_mut(), self.left.borrow_mut());
        for (to, byte) in bytes[offset..].iter_mut().zip(new) {
            *left = left.checked_sub(1).ok_or(NorFlashErrorKind::Other)?;
            *to = byte;
        }
        Ok(())
    }
}

impl ErrorType for Flash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, to: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        to.copy_from_slice(&self.bytes.borrow()[offset as usize..][..to.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.borrow().len()
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = SECTOR;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        check_erase(self, from, to)?;
        self.change(from as usize, (from..to).map(|_| 0xFF))
    }

    fn write(&mut self, offset: u32, new: &[u8]) -> Result<(), NorFlashErrorKind> {
        check_write(self, offset, new.len())?;
        let old = self.bytes.borrow()[offset as usize..][..new.len()].to_vec();
        assert!(old.iter().all(|&byte| byte == 0xFF), "a word is written twice at {offset}");
        self.change(offset as usize, new.iter().copied())
    }
}

impl Store for Flash {
    /// A copy that is kept: what lies there now. Models want it at a multiple of 16.
    fn mapped(&self, offset: usize, bytes: usize) -> &'static [u8] {
        let kept = self.bytes.borrow().get(offset..offset + bytes).map(<[u8]>::to_vec).unwrap_or_default();
        let words: Vec<u128> = kept
            .chunks(16)
            .map(|chunk| {
                let mut word = [0; 16];
                word[..chunk.len()].copy_from_slice(chunk);
                u128::from_ne_bytes(word)
            })
            .collect();
        &bytemuck::cast_slice(Vec::leak(words))[..kept.len()]
    }
}
