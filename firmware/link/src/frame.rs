//! Frames: `COBS(number, message, CRC-32) 0`.
//!
//! Number and CRC-32 are little-endian; the checksum, that of model files, covers what stands before it. COBS (Cheshire and Baker, 1999)
//! leaves no zero byte in a frame, so a zero always ends one, and a receiver that lost its place finds it at the next zero.

use crate::message::CHUNK;
use heapless::Vec;
use pith::format::crc32::crc32;
use serde::{Deserialize, Serialize};

/// Bytes of a message that is no longer than [`CHUNK`] and its fields.
pub const MESSAGE: usize = CHUNK + 16;

/// Bytes of the number before and the checksum after a message.
const AROUND: usize = 2 + 4;

/// Bytes of a frame on the line, at most: COBS adds one to every 254, and the zero.
pub const FRAME: usize = MESSAGE + AROUND + (MESSAGE + AROUND).div_ceil(254) + 1;

/// The message does not fit a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// The bytes of a frame, which begin with a zero too, so that noise before it is a frame of its own.
pub type Bytes = Vec<u8, { FRAME + 1 }>;

/// A message as a frame.
pub fn encode(number: u16, message: &impl Serialize) -> Result<Bytes, TooLong> {
    let mut frame = Bytes::new();
    encode_into(&mut frame, number, message)?;
    Ok(frame)
}

/// As [`encode`], in place: a board has one such frame. Not part of its caller, whose stack would hold its buffer for ever.
#[inline(never)]
pub fn encode_into(frame: &mut Bytes, number: u16, message: &impl Serialize) -> Result<(), TooLong> {
    let mut plain = [0; MESSAGE + AROUND];
    let (head, body) = plain.split_at_mut(2);
    head.copy_from_slice(&number.to_le_bytes());
    let end = 2 + postcard::to_slice(message, body.get_mut(..MESSAGE).ok_or(TooLong)?).map_err(|_| TooLong)?.len();
    let checksum = crc32(plain.get(..end).ok_or(TooLong)?).to_le_bytes();
    plain.get_mut(end..end + 4).ok_or(TooLong)?.copy_from_slice(&checksum);
    frame.clear();
    frame.resize_default(FRAME + 1).map_err(|_| TooLong)?;
    let room = frame.get_mut(1..FRAME).ok_or(TooLong)?;
    let bytes = cobs::try_encode(plain.get(..end + 4).ok_or(TooLong)?, room).map_err(|_| TooLong)?;
    frame.truncate(bytes + 2);
    Ok(())
}

/// A whole frame: its number and the bytes of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'r> {
    /// Of the question; an answer has the same.
    pub number: u16,
    /// As `postcard` writes it.
    pub bytes: &'r [u8],
}

impl<'r> Frame<'r> {
    /// The message, if it is one.
    pub fn message<M: Deserialize<'r>>(&self) -> Option<M> {
        postcard::from_bytes(self.bytes).ok()
    }
}

/// Collects a line's bytes into frames.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    bytes: Vec<u8, FRAME>,
    /// More came than a frame may have: all is dropped up to the next zero.
    overflowed: bool,
    /// The frame that was handed out is still in `bytes`.
    is_done: bool,
}

impl Receiver {
    /// Takes a byte; a frame if it is the last of a whole one. What is damaged, too long or too short is dropped.
    pub fn push(&mut self, byte: u8) -> Option<Frame<'_>> {
        if core::mem::take(&mut self.is_done) {
            self.bytes.clear();
        }
        if byte != 0 {
            self.overflowed |= self.bytes.push(byte).is_err();
            return None;
        }
        self.is_done = true;
        if core::mem::take(&mut self.overflowed) {
            return None;
        }
        let bytes = cobs::decode_in_place(&mut self.bytes).ok()?;
        let (plain, checksum) = self.bytes.get(..bytes)?.split_last_chunk::<4>()?;
        let (number, message) = plain.split_first_chunk::<2>()?;
        let is_whole = crc32(plain) == u32::from_le_bytes(*checksum);
        is_whole.then_some(Frame { number: u16::from_le_bytes(*number), bytes: message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;
    use std::vec::Vec;

    fn received(receiver: &mut Receiver, line: &[u8]) -> Vec<(u16, Vec<u8>)> {
        line.iter().filter_map(|&byte| receiver.push(byte).map(|f| (f.number, f.bytes.to_vec()))).collect()
    }

    #[test]
    fn a_frame_of_any_length_comes_back() {
        let data: Vec<u8> = (0..CHUNK).map(|i| (i % 7) as u8).collect();
        for len in 0..=CHUNK {
            let message = Request::Input { index: 3, offset: u32::MAX, data: &data[..len] };
            let frame = encode(len as u16, &message).unwrap();
            assert!(frame[1..frame.len() - 1].iter().all(|&byte| byte != 0));
            let mut receiver = Receiver::default();
            let frames = received(&mut receiver, &frame);
            let [(number, bytes)] = frames.as_slice() else { panic!("{len}: {} frames", frames.len()) };
            let again = Frame { number: *number, bytes };
            assert_eq!((again.number, again.message()), (len as u16, Some(message)));
        }
        assert_eq!(encode(0, &Request::Input { index: 0, offset: 0, data: &[0; CHUNK + 1000] }), Err(TooLong));
    }

    #[test]
    fn damage_never_gives_another_message() {
        let sent = encode(7, &Request::Output { index: 0, offset: 1000, bytes: 99 }).unwrap();
        let expected = received(&mut Receiver::default(), &sent);
        let whole = |line: &[u8]| {
            let mut receiver = Receiver::default();
            let frames = received(&mut receiver, line);
            assert!(frames.is_empty() || frames == expected, "{line:?}");
            // Whatever came before, the next frame is found; its first zero may also end one before.
            let next = received(&mut receiver, &sent);
            assert!(next.ends_with(&expected) && next.iter().all(|frame| *frame == expected[0]), "{line:?}");
        };
        for at in 0..sent.len() {
            (0..8).for_each(|bit| {
                let mut line = sent.to_vec();
                line[at] ^= 1 << bit;
                whole(&line);
            });
            whole(&[&sent[..at], &sent[at + 1..]].concat());
            whole(&[&sent[..at], &sent[at..=at], &sent[at..]].concat());
            whole(&sent[..at]);
        }
        whole(&[0x55; 3 * FRAME]);
        whole(&[0; 100]);
        whole(&[1; FRAME - 1]);
    }
}
