//! Two slots for a model in flash.
//!
//! ```text
//! slot:  head (HEAD bytes)                                        the file, at a multiple of 16
//!        magic "PSLT", version, bytes, CRC-32 of these, 0xFF ...
//! ```
//!
//! An update erases the slot that is not in use, head first, writes the file, reads it back through its checksum, and writes the head last.
//! The head is what makes a slot valid, so until its last byte is there the other slot is the newer one; cut off anywhere, the board starts
//! with the old model or the new one. Versions count up and are compared around their wrap.

use embedded_storage::nor_flash::NorFlash;
use pith::format::crc32::crc32;

/// Bytes before the file; a page of every flash divides it.
pub const HEAD: usize = 256;

/// Bytes of a head that say something.
const RECORD: usize = 16;

const MAGIC: [u8; 4] = *b"PSLT";

/// Flash whose content can be read where it lies.
pub trait Store: NorFlash {
    /// What lies there now. The slice is used only while its range is neither erased nor written; empty if the range is not in the flash.
    fn mapped(&self, offset: usize, bytes: usize) -> &'static [u8];
}

/// What stopped an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The file is longer than a slot.
    TooLong,
    /// A part without a beginning, or out of order, or not of a whole number of words before the last.
    OutOfOrder,
    /// The flash refused, or reads otherwise than written.
    Flash,
    /// What lies there is not the announced file.
    Checksum,
}

/// A file in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Counts updates.
    pub version: u32,
    /// The file, at a multiple of 16 if the flash is.
    pub file: &'static [u8],
    slot: usize,
}

/// An update in progress.
#[derive(Clone, Copy, Debug)]
struct Update {
    slot: usize,
    bytes: usize,
    written: usize,
}

/// Two halves of a flash region.
#[derive(Debug)]
pub struct Slots<S> {
    store: S,
    running: Option<Stored>,
    update: Option<Update>,
}

/// Bytes of the head that makes a file valid.
pub fn head(version: u32, file_bytes: u32) -> [u8; HEAD] {
    let mut head = [0xFF; HEAD];
    let words = [u32::from_le_bytes(MAGIC), version, file_bytes];
    let said = words.map(u32::to_le_bytes);
    head[..12].copy_from_slice(said.as_flattened());
    head[12..RECORD].copy_from_slice(&crc32(said.as_flattened()).to_le_bytes());
    head
}

/// Bytes of one of two slots in a flash of `capacity` bytes, of which the first [`HEAD`] are no file's.
pub const fn slot_bytes(capacity: usize, erase: usize) -> usize {
    capacity / 2 / erase * erase
}

impl<S: Store> Slots<S> {
    /// The slots of a region; `is_valid` says of a file whether it runs. The newest that does is the running one.
    pub fn new(store: S, is_valid: impl Fn(&'static [u8]) -> bool) -> Slots<S> {
        let mut slots = Slots { store, running: None, update: None };
        let found = [0, 1].map(|slot| slots.stored(slot).filter(|stored| is_valid(stored.file)));
        slots.running = match found {
            [Some(a), Some(b)] if b.version.wrapping_sub(a.version) as i32 > 0 => Some(b),
            [a, b] => a.or(b),
        };
        slots
    }

    /// The longest file.
    pub fn file_bytes(&self) -> usize {
        self.bytes().saturating_sub(HEAD)
    }

    /// The running model.
    pub fn running(&self) -> Option<Stored> {
        self.running
    }

    /// Bytes of a slot.
    fn bytes(&self) -> usize {
        slot_bytes(self.store.capacity(), S::ERASE_SIZE)
    }

    /// What the head of a slot says, if it is whole.
    fn stored(&self, slot: usize) -> Option<Stored> {
        let start = slot * self.bytes();
        let head: &[u8; RECORD] = self.store.mapped(start, RECORD).first_chunk()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let bytes = word(8) as usize;
        if head[..4] != MAGIC || word(12) != crc32(&head[..12]) || bytes > self.file_bytes() {
            return None;
        }
        Some(Stored { version: word(4), file: self.store.mapped(start + HEAD, bytes), slot })
    }

    /// Erases the slot that is not running, as far as a file of so many bytes needs.
    pub fn begin(&mut self, bytes: usize) -> Result<(), Failure> {
        self.update = None;
        if bytes > self.file_bytes() {
            return Err(Failure::TooLong);
        }
        let slot = self.running.map_or(0, |running| 1 - running.slot);
        let start = slot * self.bytes();
        let end = start + (HEAD + bytes).next_multiple_of(S::ERASE_SIZE);
        // Sector by sector, so that the head is gone before any of the file is.
        for from in (start..end).step_by(S::ERASE_SIZE) {
            self.store.erase(from as u32, (from + S::ERASE_SIZE) as u32).map_err(|_| Failure::Flash)?;
        }
        self.update = Some(Update { slot, bytes, written: 0 });
        Ok(())
    }

    /// Writes the next part of the file.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Failure> {
        let update = self.update.ok_or(Failure::OutOfOrder)?;
        let end = offset.checked_add(data.len()).ok_or(Failure::OutOfOrder)?;
        let is_last = end == update.bytes;
        if offset != update.written || end > update.bytes || !(is_last || data.len().is_multiple_of(S::WRITE_SIZE)) {
            return Err(Failure::OutOfOrder);
        }
        let at = update.slot * self.bytes() + HEAD + offset;
        let (words, rest) = data.split_at(data.len() - data.len() % S::WRITE_SIZE);
        self.store.write(at as u32, words).map_err(|_| Failure::Flash)?;
        if !rest.is_empty() {
            // The last word, filled up with what erased flash holds.
            let mut last = [0xFF; HEAD];
            last.iter_mut().zip(rest).for_each(|(to, &from)| *to = from);
            let word = last.get(..S::WRITE_SIZE).ok_or(Failure::Flash)?;
            self.store.write((at + words.len()) as u32, word).map_err(|_| Failure::Flash)?;
        }
        if self.store.mapped(at, data.len()) != data {
            return Err(Failure::Flash);
        }
        self.update = Some(Update { written: end, ..update });
        Ok(())
    }

    /// The file that was written whole.
    pub fn written(&self) -> Result<&'static [u8], Failure> {
        let update = self.update.filter(|update| update.written == update.bytes).ok_or(Failure::OutOfOrder)?;
        Ok(self.store.mapped(update.slot * self.bytes() + HEAD, update.bytes))
    }

    /// Makes the written file the running one, which the caller has found to run. `checksum` is the announced CRC-32.
    pub fn commit(&mut self, checksum: u32) -> Result<Stored, Failure> {
        let (file, update) = (self.written()?, self.update.ok_or(Failure::OutOfOrder)?);
        if crc32(file) != checksum {
            return Err(Failure::Checksum);
        }
        let version = self.running.map_or(0, |running| running.version.wrapping_add(1));
        let start = update.slot * self.bytes();
        self.store.write(start as u32, &head(version, update.bytes as u32)).map_err(|_| Failure::Flash)?;
        self.update = None;
        let stored = self.stored(update.slot).filter(|stored| stored.version == version).ok_or(Failure::Flash)?;
        self.running = Some(stored);
        Ok(stored)
    }
}
