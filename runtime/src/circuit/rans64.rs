//! rANS with a state of 64 bits and words of 32, for intervals out of up to 2^28: what [`super::rans`] is to weights, this is to data whose
//! values may have nearly all the probability. The steps are the same:
//!
//! ```text
//! encode:  x = ((x / freq) << bits) + x % freq + start        (before it, the low word goes out while x >= freq << (63 - bits))
//! decode:  x = freq * (x >> bits) + x % 2^bits - start      (after it, a word comes in while x < 2^31)
//! ```
//!
//! A stream begins with the state, low word first; words follow as they are read, little-endian. It ends where the encoder began, at 2^31.

/// Smallest state, and the encoder's first.
const LOWER: u64 = 1 << 31;

/// Largest number of bits of an interval's denominator.
pub const MAX_BITS: u32 = 28;

/// Bytes of a stream without symbols.
pub const EMPTY: usize = 8;

/// Reads symbols.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    state: u64,
    words: &'a [[u8; 4]],
    exhausted: bool,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of a stream; none if it is too short, has an odd length, or its first state is no state.
    pub fn new(bytes: &'a [u8]) -> Option<Decoder<'a>> {
        let (state, words) = bytes.split_first_chunk().map(|(&state, rest)| (u64::from_le_bytes(state), rest))?;
        let (words, odd) = words.as_chunks();
        ((LOWER..LOWER << 32).contains(&state) && odd.is_empty()).then_some(Decoder { state, words, exhausted: false })
    }

    /// Where the next symbol lies, out of `2^bits`.
    #[inline(always)]
    pub fn slot(&self, bits: u32) -> u32 {
        (self.state & ((1 << bits) - 1)) as u32
    }

    /// Takes the symbol whose interval holds [`Decoder::slot`]. `bits` is at most [`MAX_BITS`].
    #[inline(always)]
    pub fn advance(&mut self, start: u32, freq: u32, bits: u32) {
        let step = (freq as u64).wrapping_mul(self.state >> bits).wrapping_add(self.slot(bits) as u64);
        self.state = step.wrapping_sub(start as u64);
        if self.state < LOWER {
            let word = match self.words.split_first() {
                Some((&word, rest)) => {
                    self.words = rest;
                    u32::from_le_bytes(word)
                }
                None => {
                    self.exhausted = true;
                    0
                }
            };
            self.state = self.state << 32 | word as u64;
        }
    }

    /// Whether everything was read that was written, and nothing else.
    pub fn is_finished(&self) -> bool {
        self.state == LOWER && self.words.is_empty() && !self.exhausted
    }
}

/// Writes symbols, last first, from the end of a buffer to its start.
#[derive(Debug)]
pub struct Encoder<'a> {
    state: u64,
    out: &'a mut [u8],
    /// Bytes before this are free.
    at: usize,
}

impl<'a> Encoder<'a> {
    /// An encoder into `out`; four bytes a symbol and [`EMPTY`] more always suffice.
    pub fn new(out: &'a mut [u8]) -> Encoder<'a> {
        let at = out.len();
        Encoder { state: LOWER, out, at }
    }

    /// Writes the symbol before those already written; `freq` is not zero. None if the buffer is full.
    pub fn put(&mut self, start: u32, freq: u32, bits: u32) -> Option<()> {
        if self.state >= (freq as u64) << (63 - bits) {
            self.push(&(self.state as u32).to_le_bytes())?;
            self.state >>= 32;
        }
        let freq = freq as u64;
        self.state = ((self.state / freq) << bits) + self.state % freq + start as u64;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_return_whatever_their_probability() {
        let all = 1u32 << MAX_BITS;
        let intervals = [(0, all - 1), (all - 1, 1), (5, 1000), (0, all), (all / 2, all / 2)];
        let mut buffer = [0; 4 * 500 + EMPTY];
        let mut encoder = Encoder::new(&mut buffer);
        for i in (0..500).rev() {
            let (start, freq) = intervals[i * i % 5];
            encoder.put(start, freq, MAX_BITS).unwrap();
        }
        let mut decoder = Decoder::new(encoder.finish().unwrap()).unwrap();
        for i in 0..500 {
            let (start, freq) = intervals[i * i % 5];
            assert!((start..start + freq).contains(&decoder.slot(MAX_BITS)));
            decoder.advance(start, freq, MAX_BITS);
        }
        assert!(decoder.is_finished());
        assert!(Decoder::new(&[0; 7]).is_none() && Decoder::new(&[0; 8]).is_none());
    }
}
