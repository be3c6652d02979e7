//! The host's end: a question is sent until it is answered, or the patience is over.

use super::line::Line;
use pith::format::crc32::crc32;
use pith_link::frame::{Frame, Receiver, encode};
use pith_link::message::{CHUNK, PROTOCOL, Reason, Request, Response, Running};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// How long an answer may take before the question is sent again.
const PATIENCE: Duration = Duration::from_millis(400);

/// Times that a question is sent: enough for the slowest flash to be erased.
const ATTEMPTS: u32 = 40;

/// What stops a conversation.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The line itself.
    #[error("the line failed: {0}")]
    Line(#[from] std::io::Error),
    /// Silence or noise.
    #[error("no answer in {seconds} s; is the board on, does it run `serve`, and is the line the right one?")]
    Silence {
        /// So long.
        seconds: u64,
    },
    /// The board said no.
    #[error("{reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Refused {
        /// Why.
        reason: Reason,
        /// What its runtime says.
        detail: String,
    },
    /// It said something else.
    #[error("the board's answer is to another question; is its program older or newer than this one?")]
    Answer,
    /// Its messages are others.
    #[error(
        "the board speaks version {board} of the protocol, this program {PROTOCOL}; build and flash its program again"
    )]
    Protocol {
        /// Its version.
        board: u8,
    },
    /// The model is not the one that is there.
    #[error("the board runs a model with checksum {0:08x}, the file has {1:08x}; load it")]
    OtherModel(u32, u32),
}

/// A board, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub board: String,
    /// Ticks of a second.
    pub tick_hz: u32,
    /// For arenas and decoded weights.
    pub memory_bytes: u32,
    /// The longest model file.
    pub slot_bytes: u32,
    /// Its model.
    pub model: Option<Running>,
}

/// What a run took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Of all operators.
    pub ticks: u64,
    /// Operators whose ticks are known.
    pub operators: usize,
    /// Stack in use at most since the start.
    pub stack_bytes: u32,
}

/// The host's end of a line.
pub struct Client<L> {
    line: L,
    receiver: Receiver,
    number: u16,
    /// Times that a question is sent.
    pub attempts: u32,
    /// Questions that had to be sent again.
    pub repeats: u64,
}

impl<L: Line> Client<L> {
    /// Over a line. The first question's number is taken from the clock, so that a board does not take it for the last one of another client.
    pub fn new(line: L) -> Client<L> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Client {
            line,
            receiver: Receiver::default(),
            number: now.subsec_micros() as u16,
            attempts: ATTEMPTS,
            repeats: 0,
        }
    }

    /// Asks, and hands the answer to `read`.
    pub fn ask<T>(
        &mut self,
        request: &Request<'_>,
        read: impl FnOnce(Response<'_>) -> Option<T>,
    ) -> Result<T, LinkError> {
        self.number = self.number.wrapping_add(1);
        let question = encode(self.number, request).map_err(|_| LinkError::Answer)?;
        for attempt in 0..self.attempts {
            self.repeats += u64::from(attempt > 0);
            self.line.write_all(&question)?;
            self.line.flush()?;
            if let Some(answer) = self.listen()? {
                let frame = Frame { number: self.number, bytes: &answer };
                return match frame.message().ok_or(LinkError::Answer)? {
                    Response::Refused { reason, detail } => Err(LinkError::Refused { reason, detail: detail.into() }),
                    response => read(response).ok_or(LinkError::Answer),
                };
            }
        }
        Err(LinkError::Silence { seconds: (PATIENCE * self.attempts).as_secs() })
    }

    /// The answer to the last question, if it comes in time; other frames are late ones.
    fn listen(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        let started = Instant::now();
        let mut bytes = [0; 512];
        while started.elapsed() < PATIENCE {
            let given = match self.line.read(&mut bytes) {
                Ok(0) => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(given) => given,
                Err(e) if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(e) => return Err(e.into()),
            };
            for &byte in &bytes[..given] {
                let frame = self.receiver.push(byte).filter(|frame| frame.number == self.number);
                if let Some(frame) = frame {
                    return Ok(Some(frame.bytes.to_vec()));
                }
            }
        }
        Ok(None)
    }

    fn order(&mut self, request: &Request<'_>) -> Result<(), LinkError> {
        self.ask(request, |response| (response == Response::Done).then_some(()))
    }

    fn data(&mut self, request: &Request<'_>) -> Result<Vec<u8>, LinkError> {
        self.ask(request, |response| if let Response::Data(data) = response { Some(data.to_vec()) } else { None })
    }

    /// Who is there.
    pub fn identify(&mut self) -> Result<Identity, LinkError> {
        let (protocol, identity) = self.ask(&Request::Identify, |response| {
            let Response::Identity(i) = response else { return None };
            let (board, tick_hz, memory_bytes, slot_bytes) = (i.board.into(), i.tick_hz, i.memory_bytes, i.slot_bytes);
            Some((i.protocol, Identity { board, tick_hz, memory_bytes, slot_bytes, model: i.model }))
        })?;
        if protocol == PROTOCOL { Ok(identity) } else { Err(LinkError::Protocol { board: protocol }) }
    }

    /// Replaces the model; `progress` is told how many bytes are there.
    pub fn load(&mut self, file: &[u8], progress: &dyn Fn(usize)) -> Result<(), LinkError> {
        self.order(&Request::Begin { bytes: file.len() as u32 })?;
        for (i, data) in file.chunks(CHUNK).enumerate() {
            self.order(&Request::Write { offset: (CHUNK * i) as u32, data })?;
            progress(CHUNK * i + data.len());
        }
        self.order(&Request::Commit { crc32: crc32(file) })
    }

    /// Runs the model on inputs and gives its outputs, whose lengths are `outputs`.
    pub fn run(&mut self, inputs: &[Vec<i8>], outputs: &[usize]) -> Result<(Vec<Vec<i8>>, Ran), LinkError> {
        for (index, input) in (0..).zip(inputs) {
            for (i, data) in input.chunks(CHUNK).enumerate() {
                let data = bytemuck::cast_slice(data);
                self.order(&Request::Input { index, offset: (CHUNK * i) as u32, data })?;
            }
        }
        let ran = self.ask(&Request::Run, |response| match response {
            Response::Ran { ticks, operators, stack_bytes } => {
                Some(Ran { ticks, operators: operators as usize, stack_bytes })
            }
            _ => None,
        })?;
        let mut given = Vec::new();
        for (index, &len) in (0..).zip(outputs) {
            let mut output = Vec::new();
            while output.len() < len {
                let bytes = CHUNK.min(len - output.len()) as u16;
                let data = self.data(&Request::Output { index, offset: output.len() as u32, bytes })?;
                if data.len() != bytes as usize {
                    return Err(LinkError::Answer);
                }
                output.extend(data.iter().map(|&byte| byte as i8));
            }
            given.push(output);
        }
        Ok((given, ran))
    }

    /// Ticks of every operator in the last run.
    pub fn layers(&mut self, ran: &Ran) -> Result<Vec<u32>, LinkError> {
        let mut ticks = Vec::new();
        while ticks.len() < ran.operators {
            let data = self.data(&Request::Layers { first: ticks.len() as u16 })?;
            if data.is_empty() {
                return Err(LinkError::Answer);
            }
            ticks.extend(data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        }
        Ok(ticks)
    }
}
