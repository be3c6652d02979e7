//! A server over a pipe of bytes, with the golden model of the runtime.

use crate::flash::Flash;
use pith::format::crc32::crc32;
use pith_link::frame::{Receiver, encode};
use pith_link::message::{CHUNK, Identity, PROTOCOL, Reason, Request, Response};
use pith_link::server::{About, Meter, runs, serve};
use pith_link::slots::Slots;
use std::convert::Infallible;

const MEMORY: usize = 1024;

const TINY: &[u8] = include_bytes!("../../../../runtime/tests/golden/tiny.pith");

/// What is said to the server, and what it said.
#[derive(Default)]
struct Pipe {
    said: Vec<u8>,
    read: usize,
    answered: Vec<u8>,
}

impl embedded_io::ErrorType for Pipe {
    type Error = Infallible;
}

impl embedded_io::Read for Pipe {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Infallible> {
        let n = to.len().min(self.said.len() - self.read);
        to[..n].copy_from_slice(&self.said[self.read..][..n]);
        self.read += n;
        Ok(n)
    }
}

impl embedded_io::Write for Pipe {
    fn write(&mut self, from: &[u8]) -> Result<usize, Infallible> {
        self.answered.extend(from);
        Ok(from.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Every call takes a tick more than the one before.
#[derive(Default)]
struct Count(std::cell::Cell<u32>);

impl Meter for Count {
    fn ticks(&self, work: &mut dyn FnMut()) -> u32 {
        work();
        self.0.set(self.0.get() + 1);
        self.0.get()
    }

    fn stack_bytes(&self) -> u32 {
        77
    }
}

/// The answers to all that is said, each with its number.
fn converse(flash: &Flash, said: Vec<u8>) -> Vec<(u16, Vec<u8>)> {
    let mut pipe = Pipe { said, ..Pipe::default() };
    let mut memory = pith::Aligned([0; MEMORY]);
    let mut slots = Slots::new(flash.clone(), |file| runs(file, MEMORY));
    let about = About { board: "desk", tick_hz: 1000 };
    serve(about, &mut pipe, &mut slots, &Count::default(), &mut memory.0).unwrap();
    let mut receiver = Receiver::default();
    pipe.answered.iter().filter_map(|&byte| receiver.push(byte).map(|f| (f.number, f.bytes.to_vec()))).collect()
}

fn frames(requests: &[Request<'_>]) -> Vec<u8> {
    (1..).zip(requests).flat_map(|(number, request)| encode(number, request).unwrap()).collect()
}

/// All that brings a model to a board.
fn update(file: &[u8]) -> Vec<Request<'_>> {
    let parts = file.chunks(CHUNK).enumerate();
    let writes = parts.map(|(i, data)| Request::Write { offset: (CHUNK * i) as u32, data });
    let begin = Request::Begin { bytes: file.len() as u32 };
    std::iter::once(begin).chain(writes).chain([Request::Commit { crc32: crc32(file) }]).collect()
}

fn response(bytes: &[u8]) -> Response<'_> {
    pith_link::frame::Frame { number: 0, bytes }.message().expect("an answer")
}

#[test]
fn a_model_is_loaded_and_run() {
    let flash = Flash::new(4096);
    let mut requests = vec![Request::Identify, Request::Run];
    requests.extend(update(TINY));
    let asks = [
        Request::Identify,
        Request::Input { index: 0, offset: 1, data: &[3, 3] },
        Request::Input { index: 0, offset: 0, data: &[3] },
        Request::Run,
        Request::Output { index: 0, offset: 0, bytes: 2 },
        Request::Layers { first: 0 },
        Request::Output { index: 0, offset: 1, bytes: 2 },
        Request::Output { index: 1, offset: 0, bytes: 1 },
        Request::Input { index: 0, offset: u32::MAX, data: &[1, 2] },
        Request::Layers { first: 200 },
    ];
    requests.extend(asks);
    let answers = converse(&flash, frames(&requests));
    assert_eq!(answers.len(), requests.len());
    assert!((1..).zip(&answers).all(|(number, answer)| answer.0 == number));
    let answers: Vec<Response<'_>> = answers.iter().map(|(_, bytes)| response(bytes)).collect();
    let nothing = Identity {
        protocol: PROTOCOL,
        board: "desk",
        tick_hz: 1000,
        memory_bytes: MEMORY as u32,
        slot_bytes: 2048 - 256,
        model: None,
    };
    assert_eq!(answers[0], Response::Identity(nothing));
    assert_eq!(answers[1], Response::Refused { reason: Reason::NoModel, detail: "" });
    let rest = &answers[requests.len() - asks.len()..];
    assert!(answers[2..requests.len() - asks.len()].iter().all(|answer| *answer == Response::Done));
    let Response::Identity(Identity { model: Some(model), .. }) = rest[0] else { panic!("{:?}", rest[0]) };
    assert_eq!((model.version, model.bytes, model.crc32), (0, TINY.len() as u32, crc32(TINY)));
    let Response::Ran { ticks, operators, stack_bytes: 77 } = rest[3] else { panic!("{:?}", rest[3]) };
    let n = u64::from(operators);
    assert_eq!(ticks, n * (n + 1) / 2, "operators take 1, 2, 3, ... ticks");
    assert_eq!(rest[4], Response::Data(&[7, -15i8 as u8]));
    let Response::Data(layers) = rest[5] else { panic!("{:?}", rest[5]) };
    assert_eq!(layers.len(), 4 * operators as usize);
    assert_eq!(layers[..4], 1u32.to_le_bytes());
    let out_of_range = Response::Refused { reason: Reason::OutOfRange, detail: "" };
    assert!(rest[6..].iter().all(|answer| *answer == out_of_range), "{:?}", &rest[6..]);
    // The board starts with it.
    let again = converse(&flash, frames(&[Request::Identify]));
    let Response::Identity(Identity { model: Some(again), .. }) = response(&again[0].1) else { panic!() };
    assert_eq!(again, model);
}

#[test]
fn a_question_that_comes_again_is_not_done_again() {
    let flash = Flash::new(4096);
    let mut requests = update(TINY);
    requests.extend([Request::Input { index: 0, offset: 0, data: &[3, 3, 3] }, Request::Run]);
    let mut said = frames(&requests);
    let run = encode(requests.len() as u16, &Request::Run).unwrap();
    said.extend([run.as_slice(), run.as_slice()].concat());
    said.extend(encode(100, &Request::Output { index: 0, offset: 0, bytes: 2 }).unwrap());
    let answers = converse(&flash, said);
    let [.., a, b, c, output] = answers.as_slice() else { panic!() };
    assert!(a == b && b == c, "the same answer, ticks and all");
    assert_eq!(response(&output.1), Response::Data(&[7, -15i8 as u8]));
}

#[test]
fn models_that_cannot_run_are_refused_and_the_old_one_stays() {
    let flash = Flash::new(4096);
    assert!(converse(&flash, frames(&update(TINY))).len() > 2);
    let mut damaged = TINY.to_vec();
    damaged[40] ^= 1;
    let answers = converse(&flash, frames(&update(&damaged)));
    let Response::Refused { reason: Reason::Model, detail } = response(&answers.last().unwrap().1) else { panic!() };
    assert!(detail.contains("checksum"), "{detail}");
    let mut wrong = update(TINY);
    *wrong.last_mut().unwrap() = Request::Commit { crc32: 0 };
    let answers = converse(&flash, frames(&wrong));
    assert_eq!(response(&answers.last().unwrap().1), Response::Refused { reason: Reason::Checksum, detail: "" });
    let answers = converse(&flash, frames(&[Request::Begin { bytes: 4000 }, Request::Identify]));
    assert_eq!(response(&answers[0].1), Response::Refused { reason: Reason::TooLong, detail: "" });
    let Response::Identity(Identity { model: Some(model), .. }) = response(&answers[1].1) else { panic!() };
    assert_eq!((model.version, model.crc32), (0, crc32(TINY)));
}

#[test]
fn any_garbage_is_survived() {
    let flash = Flash::new(4096);
    converse(&flash, frames(&update(TINY)));
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u8
    };
    for _ in 0..200 {
        let mut said: Vec<u8> = (0..2000).map(|_| random()).collect();
        // Whole frames of messages that are none, too.
        for number in 0..20 {
            let noise: [u8; 20] = std::array::from_fn(|_| random());
            said.extend(encode(number, &noise).unwrap());
        }
        said.extend(encode(60000, &Request::Identify).unwrap());
        let answers = converse(&flash, said);
        let (number, last) = answers.last().unwrap();
        assert_eq!(*number, 60000);
        assert!(matches!(response(last), Response::Identity(Identity { model: Some(_), .. })));
    }
}
