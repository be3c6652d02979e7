//! The entropy coder of weights: rANS with a state of 32 bits and words of 16.
//!
//! A symbol with the interval `[start, start + freq)` out of `2^bits` takes the state `x` to
//!
//! ```text
//! encode:  x = ((x / freq) << bits) + x % freq + start        (before it, the low word goes out while x >= freq << (32 - bits))
//! decode:  x = freq * (x >> bits) + x % 2^bits - start      (after it, a word comes in while x < 2^16)
//! ```
//!
//! Symbols are encoded last first, so a decoder meets them in order. It starts where the encoder ended and must end where the encoder
//! started, at 2^16 with nothing left.
//!
//! That alone is a weak checksum: under a flat distribution a wrong word spoils one symbol and is forgotten. So the first state and every state after a
//! word came in go through `check = state ^ rotate_left(check, 5)`, one instruction, whose two halves together are stored. A single wrong word that
//! changes nothing behind it is always found, anything else but for one case in 2^16.

use super::{Coder, Leaf};

/// Smallest state, and the encoder's first.
const LOWER: u32 = 1 << 16;

/// Largest number of bits of an interval's denominator.
pub const MAX_BITS: u32 = 16;

/// Reads symbols.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    state: u32,
    words: &'a [[u8; 2]],
    check: u32,
    expected: u16,
    exhausted: bool,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of a stream; none if it is too short, has an odd length, or its first state is no state.
    pub fn new(bytes: &'a [u8]) -> Option<Decoder<'a>> {
        let (&[a, b, c, d, low, high], words) = bytes.split_first_chunk()?;
        let (state, expected) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([low, high]));
        let (words, odd) = words.as_chunks();
        let is_valid = state >= LOWER && odd.is_empty();
        is_valid.then_some(Decoder { state, words, check: state, expected, exhausted: false })
    }

    /// Where the next symbol lies, out of `2^bits`.
    #[inline(always)]
    pub fn slot(&self, bits: u32) -> u32 {
        self.state & ((1 << bits) - 1)
    }

    /// Takes the symbol whose interval holds [`Decoder::slot`]. `bits` is at most [`MAX_BITS`].
    #[inline(always)]
    pub fn advance(&mut self, start: u32, freq: u32, bits: u32) {
        self.state = freq.wrapping_mul(self.state >> bits).wrapping_add(self.slot(bits)).wrapping_sub(start);
        if self.state < LOWER {
            let word = match self.words.split_first() {
                Some((&word, rest)) => {
                    self.words = rest;
                    u16::from_le_bytes(word)
                }
                None => {
                    self.exhausted = true;
                    0
                }
            };
            self.state = self.state << 16 | word as u32;
            self.check = self.state ^ self.check.rotate_left(5);
        }
    }

    /// Whether everything was read that was written, nothing else, and unchanged.
    pub fn is_finished(&self) -> bool {
        let is_checked = folded(self.check) == self.expected;
        self.state == LOWER && self.words.is_empty() && !self.exhausted && is_checked
    }
}

impl Coder for Decoder<'_> {
    #[inline(always)]
    fn code<L: Leaf>(&mut self, leaf: &L) -> i32 {
        let (symbol, start, freq) = leaf.locate(self.slot(L::BITS));
        self.advance(start, freq, L::BITS);
        symbol
    }
}

/// Both halves of a checksum.
fn folded(check: u32) -> u16 {
    (check ^ check >> 16) as u16
}

/// Writes symbols, last first, from the end of a buffer to its start.
#[derive(Debug)]
pub struct Encoder<'a> {
    state: u32,
    out: &'a mut [u8],
    /// Bytes before this are free.
    at: usize,
    check: u32,
    /// What the decoder's checksum is rotated by after the next state that enters it here.
    rotation: u32,
}

impl<'a> Encoder<'a> {
    /// An encoder into `out`; two bytes a symbol and six more always suffice.
    pub fn new(out: &'a mut [u8]) -> Encoder<'a> {
        let at = out.len();
        Encoder { state: LOWER, out, at, check: 0, rotation: 0 }
    }

    /// Writes the symbol before those already written; `freq` is not zero. None if the buffer is full.
    pub fn put(&mut self, start: u32, freq: u32, bits: u32) -> Option<()> {
        if self.state as u64 >= (freq as u64) << (32 - bits) {
            self.push(&(self.state as u16).to_le_bytes())?;
            self.enter();
            self.state >>= 16;
        }
        self.state = ((self.state / freq) << bits) + self.state % freq + start;
        Some(())
    }

    /// Ends the stream and returns its bytes.
    pub fn finish(mut self) -> Option<&'a [u8]> {
        self.enter();
        self.push(&folded(self.check).to_le_bytes())?;
        self.push(&self.state.to_le_bytes())?;
        self.out.get(self.at..)
    }

    fn enter(&mut self) {
        self.check ^= self.state.rotate_left(self.rotation);
        self.rotation = (self.rotation + 5) % 32;
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let at = self.at.checked_sub(bytes.len())?;
        self.out.get_mut(at..self.at)?.copy_from_slice(bytes);
        self.at = at;
        Some(())
    }
}
