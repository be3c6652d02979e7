//! A file of several precisions: a model, and behind it the same network in more bits, told as what the model does not say yet.
//!
//! ```text
//! [coarsest model: an ordinary file][what makes it finer][what makes that finer]
//!  <----------- 2 bits ------------>
//!  <------------------ 4 bits ------------------------>
//!  <------------------------------- 8 bits ------------------------------------>
//! ```
//!
//! Every precision has its own records, scales and metadata; only weights build upon each other ([`crate::circuit::refined`]). A prefix of the file is a
//! file: what was not loaded, or has no room, is not missed, and every reader takes such a file for its coarsest model.
//!
//! ```
//! # fn choose<'m>(file: &'m [u8], ram: usize) -> Option<pith::Model<'m>> {
//! // The finest that fits; then `Model::decode_into` as of any coded model.
//! let models = pith::precisions(file).map_while(Result::ok);
//! models.take_while(|model| model.arena_bytes() + model.decoded_bytes() <= ram).last()
//! # }
//! ```

use crate::error::Error;
use crate::format::MAGIC;
use crate::format::header::Header;
use crate::model::{Model, next_file};
use crate::uses;
use core::mem::offset_of;

/// Most precisions of a file.
pub const MAX_PRECISIONS: usize = 4;

/// Every precision of a file, the coarsest first, each checked as [`Model::parse`] does. The first error is the last item. `file` begins at a multiple of
/// [`crate::format::ALIGN`] and may be longer.
pub fn precisions(file: &[u8]) -> Precisions<'_> {
    Precisions { file, at: 0, count: 0 }
}

/// See [`precisions`].
#[derive(Clone, Debug)]
pub struct Precisions<'m> {
    file: &'m [u8],
    /// Where the next one begins.
    at: usize,
    count: usize,
}

impl Precisions<'_> {
    /// Bytes of the precisions so far, which are a file by themselves.
    pub fn bytes(&self) -> usize {
        self.at.min(self.file.len())
    }
}

impl<'m> Iterator for Precisions<'m> {
    type Item = Result<Model<'m>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (before, bytes) = self.file.split_at_checked(self.at)?;
        // Whatever else follows a file is not part of it.
        if self.count > 0 && !is_finer(bytes) {
            return None;
        }
        let model = match self.count < MAX_PRECISIONS {
            true => Model::parse_behind::<{ uses::ALL }>(bytes, before),
            false => Err(Error::Unsupported { what: "more than four precisions" }),
        };
        self.count += 1;
        self.at = match &model {
            Ok(_) => self.at + next_file(bytes),
            Err(_) => usize::MAX,
        };
        Some(model)
    }
}

fn is_finer(bytes: &[u8]) -> bool {
    let features = bytes.get(offset_of!(Header, required_features)..).and_then(|rest| rest.first_chunk());
    bytes.starts_with(&MAGIC) && features.is_some_and(|&word| u32::from_le_bytes(word) & Header::REFINED != 0)
}
