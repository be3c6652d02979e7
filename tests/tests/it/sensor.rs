//! The program that senses: what it says of a recording in the emulator is what the same code says on the host, and that is what was done.

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{ErrorType, OutputPin};
use pith::Model;
use pith_sensing::replay::{Recorded, Replay};
use pith_sensing::watch::{Fault, Watch};
use pith_sensing::{GESTURES, RATE_HZ, WINDOW, margin};
use pith_tests::here;
use pith_tools::core::{Core, Machine};
use pith_tools::device::board::Board;
use pith_tools::gestures::recording as gestures_of;
use pith_tools::has;
use pith_tools::qemu::emulate;
use pith_tools::setup::has_target;
use quantize::execute::Runner;
use quantize::pack::ModelFile;
use quantize::random::Random;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::path::PathBuf;

pith::include_model!(mod gestures = "../../models/gestures/gestures.pith");

fn recording() -> PathBuf {
    here().join("models/gestures/gestures.recording")
}

/// Counts nanoseconds that are slept.
struct Clock<'c>(&'c Cell<u64>);

impl DelayNs for Clock<'_> {
    fn delay_ns(&mut self, ns: u32) {
        self.0.set(self.0.get() + u64::from(ns));
    }
}

/// A light that notes what it does, if it does something.
struct Light<'l> {
    said: &'l RefCell<Vec<String>>,
    is_lit: bool,
}

impl Light<'_> {
    fn set(&mut self, is_lit: bool) -> Result<(), Infallible> {
        if self.is_lit != is_lit {
            self.said.borrow_mut().push(format!("light {}", if is_lit { "on" } else { "off" }));
        }
        self.is_lit = is_lit;
        Ok(())
    }
}

impl ErrorType for Light<'_> {
    type Error = Infallible;
}

impl OutputPin for Light<'_> {
    fn set_low(&mut self) -> Result<(), Infallible> {
        self.set(false)
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        self.set(true)
    }
}

/// What a board would say of samples.
fn said_of(samples: &[Recorded]) -> Vec<String> {
    let (said, slept) = (RefCell::default(), Cell::default());
    let model = gestures::model().unwrap();
    let mut arena = gestures::ARENA;
    let mut engine = gestures::Engine::using(&model, &mut arena.0).unwrap();
    let light = Light { said: &said, is_lit: false };
    let bus = Replay::new(samples.iter().copied());
    let mut watch = Watch::new(bus, light, Clock(&slept), margin(gestures::OUTPUTS[0].scale));
    watch.start().unwrap();
    let end = loop {
        match watch.next(&mut engine) {
            Ok(seen) => said.borrow_mut().push(format!("sample {}: {}", seen.samples, GESTURES[seen.gesture])),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(end, Fault::Bus(_)), "{end:?}");
    assert!(watch.start().is_err(), "the chip is gone");
    drop(watch);
    let seconds = slept.get() as f64 / 1e9;
    let recorded = samples.len() as f64 / f64::from(RATE_HZ);
    assert!((0.85..1.05).contains(&(seconds / recorded)), "slept for {seconds} of {recorded} s");
    said.into_inner()
}

/// What it would say of the recording that it is emulated with.
fn on_the_host() -> Vec<String> {
    let bytes = std::fs::read(recording()).unwrap();
    let samples = bytes.chunks_exact(6).map(|b| [0, 2, 4].map(|at| i16::from_le_bytes([b[at], b[at + 1]])));
    said_of(&samples.collect::<Vec<_>>())
}

/// The gestures of a log.
fn seen(said: &[String]) -> Vec<&str> {
    said.iter().filter_map(|line| Some(line.split_once(": ")?.1)).collect()
}

const ALL: [&str; 8] = ["shake", "rest", "circle", "rest", "tap", "rest", "tilt", "rest"];

#[test]
fn every_gesture_is_seen_once() {
    let said = on_the_host();
    println!("{said:?}");
    assert_eq!(seen(&said), ALL);
    let lights: Vec<&str> = said.iter().filter_map(|line| line.strip_prefix("light ")).collect();
    assert_eq!(lights, ["on", "off"].repeat(4));
}

/// Of recordings that neither the network nor anything around it was made with.
#[test]
fn most_recordings_are_told_apart() {
    let count = 200;
    let right = (0..count).filter(|i| seen(&said_of(&gestures_of(1_000_000 + i))) == ALL).count();
    println!("{right} of {count} recordings of four gestures are right as a whole");
    assert!(right > 160, "{right}");
}

#[test]
fn files_for_all_cores_say_the_same() {
    let read = |core: &str| ModelFile::read(&here().join(format!("models/gestures/gestures{core}.pith"))).unwrap();
    let files = ["", "-m0", "-m4"].map(read);
    let mut random = Random::new(1, 0);
    for _ in 0..200 {
        let window: Vec<i8> = (0..3 * WINDOW).map(|_| random.bits() as i8).collect();
        let [any, m0, m4] = files.each_ref().map(|file| {
            let model = Model::parse(file.as_bytes()).unwrap();
            Runner::new(&model).run_raw(std::slice::from_ref(&window))
        });
        assert!(any == m0 && any == m4);
    }
}

#[test]
fn an_emulated_board_says_what_the_host_says() {
    let board = Board::find("qemu-netduinoplus2").unwrap().0;
    if !has("qemu-system-arm") || !has_target(&board.target) {
        println!("skipped: no qemu-system-arm or no target {}; cargo xtask setup installs them", board.target);
        return;
    }
    let elf = board.build("sensor", true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(recording(), folder.path().join("gestures.recording")).unwrap();
    let machine = Machine { machine: "netduinoplus2", ..Core::M4.machine(0, 0) };
    let (ended_well, log) = emulate(&elf, machine, folder.path(), true).unwrap();
    println!("{log:?}");
    assert!(ended_well);
    let said: Vec<String> =
        log.iter().filter_map(|line| Some(line[line.find("sample ").or(line.find("light "))?..].into())).collect();
    assert_eq!(said, on_the_host());
}
