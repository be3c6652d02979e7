//! Boards at the other end of a line, emulated ones included.
//!
//! - [`board`]: what `firmware/boards/` has, and which model fits where;
//! - [`mod@line`]: the bytes: a serial port, or an emulator's UART on a socket;
//! - [`flash`]: programs and models onto boards, by a debug probe; their logs;
//! - [`client`]: questions and answers over it, see `pith_link`;
//! - [`verify`]: every output byte of a board against the host's;
//! - [`profile`]: ticks of every operator.

pub mod board;
pub mod client;
pub mod flash;
pub mod line;
pub mod profile;
pub mod verify;
