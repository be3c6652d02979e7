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
//! started, at 2^16 with nothing left: that is the checksum of a stream.

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
    exhausted: bool,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of a stream; none if it is too short, has an odd length, or its first state is no state.
    pub fn new(bytes: &'a [u8]) -> Option<Decoder<'a>> {
        let (state, words) = bytes.split_first_chunk().map(|(&state, rest)| (u32::from_le_bytes(state), rest))?;
        let (words, odd) = words.as_chunks();
        (state >= LOWER && odd.is_empty()).then_some(Decoder { state, words, exhausted: false })
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
        }
    }

    /// Whether everything was read that was written, and nothing else.
    pub fn is_finished(&self) -> bool {
        self.state == LOWER && self.words.is_empty() && !self.exhausted
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

/// Writes symbols, last first, from the end of a buffer to its start.
#[derive(Debug)]
pub struct Encoder<'a> {
    state: u32,
    out: &'a mut [u8],
    /// Bytes before this are free.
    at: usize,
}

impl<'a> Encoder<'a> {
    /// An encoder into `out`; two bytes a symbol and four more always suffice.
    pub fn new(out: &'a mut [u8]) -> Encoder<'a> {
        let at = out.len();
        Encoder { state: LOWER, out, at }
    }

    /// Writes the symbol before those already written; `freq` is not zero. None if the buffer is full.
    pub fn put(&mut self, start: u32, freq: u32, bits: u32) -> Option<()> {
        if self.state as u64 >= (freq as u64) << (32 - bits) {
            self.push(&(self.state as u16).to_le_bytes())?;
            self.state >>= 16;
        }
        self.state = ((self.state / freq) << bits) + self.state % freq + start;
        Some(())
    }

    /// Ends the stream and returns its bytes.
    pub fn finish(mut self) -> Option<&'a [u8]> {
        self.push(&self.state.to_le_bytes())?;
        self.out.get(self.at..)
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let at = self.at.checked_sub(bytes.len())?;
        self.out.get_mut(at..self.at)?.copy_from_slice(bytes);
        self.at = at;
        Some(())
    }
}
