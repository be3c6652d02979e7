//! What an accelerometer feels, as gestures: samples, a window of them, a model that looks at it every so often, a decision, a light.
//!
//! All of it is integers and the same on every machine, so that what a board says of a recording is what the host says of it. The outside is
//! `embedded-hal`: [`watch::Watch`] is generic over bus, light and delay, and [`replay::Replay`] is a bus with a recorded accelerometer on it.

#![no_std]
#![forbid(unsafe_code)]

pub mod decision;
pub mod replay;
pub mod watch;

/// What the model tells apart, by the number of its output.
pub const GESTURES: [&str; 5] = ["rest", "shake", "circle", "tap", "tilt"];

/// No gesture.
pub const REST: usize = 0;

/// Samples of a second.
pub const RATE_HZ: u32 = 50;

/// Samples that the model sees.
pub const WINDOW: usize = 64;

/// Samples from one look to the next.
pub const STRIDE: usize = 8;

/// A sample as the model takes it: x, y, z in steps of 1/32 g.
pub type Sample = [i8; 3];

/// An axis as the accelerometer gives it, in 10 bits of ±4 g, in the model's steps, of which it has four for one; to the nearest, up from the middle.
pub fn step(axis: i16) -> i8 {
    (axis.saturating_add(2) >> 2).clamp(i8::MIN.into(), i8::MAX.into()) as i8
}

/// What a score has to lead by, in its own steps, so that its gesture is e times as likely as the next; of scores before a softmax.
pub const fn margin(scale: f32) -> i16 {
    (1.0 / scale) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_rounded() {
        // 1 g is 128 of 512.
        assert_eq!([128, 127, 126, 125, 1, -2, -3].map(step), [32, 32, 32, 31, 0, 0, -1]);
        assert_eq!([511, 510, 509, -512, i16::MAX, i16::MIN].map(step), [127, 127, 127, -128, 127, -128]);
    }
}
