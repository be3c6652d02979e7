//! Emulated boards over their UARTs: every output byte is the host's, also when the line flips, loses and repeats bytes; a model is replaced while
//! another one runs.

use crate::firmware::{network, networks};
use pith::Model;
use pith_tools::device::board::Board;
use pith_tools::device::client::{Client, LinkError};
use pith_tools::device::flash::{Args as Flash, Place, run as flash};
use pith_tools::device::line::{Emulator, Line};
use pith_tools::device::verify::{Session, verify};
use pith_tools::has;
use pith_tools::setup::has_target;
use quantize::pack::{ModelFile, PackOptions, pack};
use std::io::{Error, Read, Result, Write};
use std::os::unix::net::UnixStream;

/// An emulated board with its program, unless this machine cannot.
fn board(name: &str) -> Option<(Board, std::path::PathBuf)> {
    let board = Board::find(name).unwrap().0;
    if !has("qemu-system-arm") || !has_target(&board.target) {
        println!("skipped: no qemu-system-arm or no target {}; cargo xtask setup installs them", board.target);
        return None;
    }
    let elf = board.build("serve", true).unwrap();
    Some((board, elf))
}

/// A network's file for a board and so many inputs, of its 20 again and again.
fn model_for(board: &Board, index: usize, count: usize) -> Option<(ModelFile, Vec<Vec<Vec<i8>>>)> {
    let (path, set, scale) = networks().into_iter().nth(index)?;
    let network = network(&path, &set, scale, 20);
    let isa = quantize::target::Target::find(&board.core).unwrap().isa;
    let file = ModelFile::new(
        &pack(network.built.packed.program, PackOptions { isa, ..PackOptions::default() }).unwrap().bytes,
    );
    let inputs = network.inputs.into_iter().cycle().take(count).collect();
    Some((file, inputs))
}

#[test]
fn outputs_of_an_emulated_board_are_the_hosts() {
    let Some((board, elf)) = board("qemu-netduinoplus2") else { return };
    for index in 0..networks().len() {
        let Some((file, inputs)) = model_for(&board, index, 100) else { continue };
        let (emulator, line) = Emulator::start(&board, &elf, Some(file.as_bytes()), false).unwrap();
        let mut session = Session::over(Box::new(line), file.as_bytes(), Some(emulator)).unwrap();
        let verdict = verify(&mut session, file.as_bytes(), &inputs).unwrap();
        println!("{index}: {verdict:?}");
        assert_eq!((verdict.equal, verdict.first_difference), (100, None));
        assert_eq!(session.load_seconds, None, "the board starts with what lies in its slot");
        // The whole stack, with the line's two frames and the layers' ticks in it.
        assert!(verdict.stack_bytes > 500 && verdict.stack_bytes <= 4096, "{} B of stack", verdict.stack_bytes);
    }
}

#[test]
fn vectors_of_an_emulated_board_give_the_hosts_bytes() {
    let Some((board, elf)) = board("qemu-mps3-an547") else { return };
    for index in [0, 2] {
        let Some((file, inputs)) = model_for(&board, index, 5) else { continue };
        let (emulator, line) = Emulator::start(&board, &elf, None, false).unwrap();
        let mut session = Session::over(Box::new(line), file.as_bytes(), Some(emulator)).unwrap();
        let verdict = verify(&mut session, file.as_bytes(), &inputs).unwrap();
        assert_eq!(verdict.equal, 5);
        assert!(session.load_seconds.is_some() && verdict.stack_bytes <= 4096, "{} B of stack", verdict.stack_bytes);
    }
}

#[test]
fn programs_of_all_boards_fit_their_flash() {
    for board in Board::all().unwrap() {
        if !has_target(&board.target) {
            println!("skipped: no target {}; cargo xtask setup adds it", board.target);
            continue;
        }
        let programs = board.programs(false).unwrap();
        assert!(programs.iter().any(|program| program == "serve"));
        for program in programs {
            let bytes = board.program_bytes(&program).unwrap();
            println!("{} {program}: {bytes} B", board.name);
            assert!(bytes > 10_000 && bytes < board.flash.bytes as u64, "{} {program}: {bytes} B", board.name);
        }
    }
}

#[test]
fn a_board_is_a_target_to_build_for() {
    for board in Board::all().unwrap() {
        let [by_name, by_core] = [&board.name, &board.core].map(|name| quantize::target::Target::find(name).unwrap());
        assert_eq!(by_name.isa, by_core.isa, "{}", board.name);
    }
}

/// A line on which one byte in `every` is flipped, lost or repeated, both ways.
struct Faulty<L> {
    line: L,
    every: u64,
    state: u64,
    faults: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl<L: Line> Faulty<L> {
    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut spoiled = Vec::new();
        for &byte in bytes {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let random = self.state >> 33;
            if !random.is_multiple_of(self.every) {
                spoiled.push(byte);
                continue;
            }
            self.faults.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            match random / self.every % 3 {
                0 => spoiled.push(byte ^ 1 << (random / self.every / 3 % 8)),
                1 => {}
                _ => spoiled.extend([byte, byte]),
            }
        }
        spoiled
    }
}

impl<L: Line> Read for Faulty<L> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        loop {
            let half = to.len() / 2;
            let given = self.line.read(&mut to[..half])?;
            let spoiled = self.spoil(&to[..given]);
            // No bytes would mean the end of the line.
            if given == 0 || !spoiled.is_empty() {
                to[..spoiled.len()].copy_from_slice(&spoiled);
                return Ok(spoiled.len());
            }
        }
    }
}

impl<L: Line> Write for Faulty<L> {
    fn write(&mut self, from: &[u8]) -> Result<usize> {
        let spoiled = self.spoil(from);
        self.line.write_all(&spoiled)?;
        Ok(from.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.line.flush()
    }
}

#[test]
fn a_faulty_line_changes_no_byte() {
    let Some((board, elf)) = board("qemu-netduinoplus2") else { return };
    let Some((file, inputs)) = model_for(&board, 0, 25) else { return };
    let (emulator, line) = Emulator::start(&board, &elf, Some(file.as_bytes()), false).unwrap();
    let faults = std::sync::Arc::default();
    let faulty = Faulty { line, every: 250, state: 5, faults: std::sync::Arc::clone(&faults) };
    let mut session = Session::over(Box::new(faulty), file.as_bytes(), Some(emulator)).unwrap();
    let verdict = verify(&mut session, file.as_bytes(), &inputs).unwrap();
    let faults = faults.load(std::sync::atomic::Ordering::Relaxed);
    println!("{faults} faults, {verdict:?}");
    assert_eq!((verdict.equal, verdict.first_difference), (25, None));
    assert!(faults > 10 && verdict.repeats > 5);
}

#[test]
fn noise_alone_is_an_error_in_time() {
    let Some((board, elf)) = board("qemu-microbit") else { return };
    let (_emulator, line) = Emulator::start(&board, &elf, None, false).unwrap();
    let mut client = Client::new(Faulty { line, every: 1, state: 1, faults: std::sync::Arc::default() });
    client.attempts = 3;
    assert!(matches!(client.identify(), Err(LinkError::Silence { .. })));
}

#[test]
fn a_model_is_loaded_over_the_line_and_another_replaces_it() {
    let Some((board, elf)) = board("qemu-microbit") else { return };
    let Some((digits, inputs)) = model_for(&board, 0, 20) else { return };
    let (emulator, line) = Emulator::start(&board, &elf, None, false).unwrap();
    let mut session = Session::over(Box::new(line), digits.as_bytes(), Some(emulator)).unwrap();
    assert!(session.load_seconds.is_some());
    let verdict = verify(&mut session, digits.as_bytes(), &inputs).unwrap();
    assert_eq!(verdict.equal, 20);
    // Loading takes the most; what was painted is all that there is, so a full stack would say so.
    let (used, given) = (verdict.stack_bytes as usize, board.stack_bytes());
    assert!(used <= 4096 && used + 512 <= given, "{used} of {given} B of stack");
    let model = session.identity.model.unwrap();
    assert_eq!((model.version, session.identity.board.as_str()), (0, "microbit"));

    // A damaged file is refused with what the runtime says, and the old model goes on.
    let mut damaged = digits.as_bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = session.client.load(&damaged, &|_| ()).unwrap_err().to_string();
    assert!(refused.contains("checksum"), "{refused}");
    assert_eq!(verify(&mut session, digits.as_bytes(), &inputs).unwrap().equal, 20);

    // kws wants 9.7 of the 16 KB.
    let Some((kws, inputs)) = model_for(&board, 2, 3) else { return };
    session.client.load(kws.as_bytes(), &|_| ()).unwrap();
    assert_eq!(session.client.identify().unwrap().model.unwrap().version, 1);
    assert_eq!(verify(&mut session, kws.as_bytes(), &inputs).unwrap().equal, 3);
    let model = Model::parse(kws.as_bytes()).unwrap();
    println!("kws on the micro:bit: arena of {} B", model.arena_bytes());
}

/// A line at whose other end the board is reset after so many bytes.
struct Cut<'e> {
    line: UnixStream,
    left: usize,
    emulator: &'e Emulator,
}

impl Read for Cut<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        self.line.read(to)
    }
}

impl Write for Cut<'_> {
    fn write(&mut self, from: &[u8]) -> Result<usize> {
        let said = from.len().min(self.left);
        self.line.write_all(&from[..said])?;
        self.left -= said;
        if said < from.len() {
            self.emulator.reset().map_err(Error::other)?;
            return Err(Error::other("reset"));
        }
        Ok(said)
    }

    fn flush(&mut self) -> Result<()> {
        self.line.flush()
    }
}

#[test]
fn a_reset_in_an_update_leaves_the_old_model_or_the_new() {
    let Some((board, elf)) = board("qemu-microbit") else { return };
    let (Some(digits), Some(kws)) = (model_for(&board, 0, 1), model_for(&board, 2, 1)) else { return };
    let (emulator, line) = Emulator::start(&board, &elf, None, false).unwrap();
    Client::new(line.try_clone().unwrap()).load(digits.0.as_bytes(), &|_| ()).unwrap();
    let (mut old, mut new, mut updates) = (&digits, &kws, 0);
    // Frames are a little longer than the file; the last cuts are behind its end.
    let cuts = 24;
    for cut in 0..cuts {
        let left = new.0.as_bytes().len() * cut * 6 / 5 / (cuts - 2);
        let whole = Client::new(Cut { line: line.try_clone().unwrap(), left, emulator: &emulator });
        let loaded = { whole }.load(new.0.as_bytes(), &|_| ()).is_ok();
        let mut client = Client::new(line.try_clone().unwrap());
        let running = client.identify().unwrap().model.expect("a model");
        let is_new = running.bytes as usize == new.0.as_bytes().len();
        assert!(is_new || running.bytes as usize == old.0.as_bytes().len());
        assert!(is_new || !loaded, "what was loaded is there");
        if is_new {
            (old, new, updates) = (new, old, updates + 1);
        }
        let model = Model::parse(old.0.as_bytes()).unwrap();
        let lens: Vec<usize> = model.outputs().iter().map(|port| model.tensor(port.tensor).len as usize).collect();
        let (given, _) = client.run(&old.1[0], &lens).unwrap();
        assert_eq!(given, quantize::execute::Runner::new(&model).run_raw(&old.1[0]), "cut {cut}");
    }
    println!("{cuts} updates cut off, {updates} of them after their end");
    assert!((1..cuts / 2).contains(&updates));
}

/// What stands in for probe-rs: it notes what it is told, and answers.
fn programmer(folder: &std::path::Path, answers: &str) -> Place {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("probe-rs");
    let script = format!("#!/bin/sh\necho \"$*\" >> {}/said\ncase \"$1\" in\n{answers}\nesac\n", folder.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Place { board: "netduinoplus2".into(), probe: None, probe_rs: path }
}

#[test]
fn flashing_writes_program_and_slots_and_reads_the_log() {
    let board = Board::find("netduinoplus2").unwrap().0;
    if !has_target(&board.target) {
        println!("skipped: no target {}; cargo xtask setup adds it", board.target);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = model_for(&board, 0, 1).expect("a model that the repository has").0;
    let (digits, bytes) = (folder.path().join("digits.pith"), file.as_bytes().len());
    std::fs::write(&digits, file.as_bytes()).unwrap();
    let run = |answers: &str, model_only: bool| {
        let _ = std::fs::remove_file(folder.path().join("said"));
        let (model, place) = (Some(digits.clone()), programmer(folder.path(), answers));
        let done = flash(&Flash { model, place, program: "serve".into(), model_only });
        (done.map_err(|e| e.to_string()), std::fs::read_to_string(folder.path().join("said")).unwrap_or_default())
    };
    let log = format!("attach) echo 'INFO netduinoplus2: model 0 of {bytes} bytes'; exec sleep 60;;");
    let answers = |read: &str| format!("read) echo {read};;\n{log}");
    let verbs = |said: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.split(' ').next().map(String::from)).filter(|v| v != "--version").collect()
    };

    let (done, said) = run(&answers("10076413"), false);
    assert_eq!(done, Ok(()));
    assert_eq!(verbs(&said), ["read", "download", "download", "download", "reset", "attach"]);
    // The program, the first slot, the head of the second one.
    assert!(said.contains("netduinoplus2-serve\n") && said.contains("--base-address 0x8040000\n"), "{said}");
    assert!(said.contains("--base-address 0x80a0000\n"), "{said}");
    let (done, said) = run(&answers("10076413"), true);
    assert_eq!((done, verbs(&said).len()), (Ok(()), 5));

    let (done, said) = run(&answers("20006421"), false);
    let error = done.unwrap_err();
    assert!(error.contains("no STM32F405RGTx") && error.contains("0x20006421"), "{error}");
    assert_eq!(verbs(&said), ["read"], "nothing is written to another chip");
    let (done, _) = run("read) echo 'Error: No connected probes were found.' >&2; exit 1;;", false);
    assert!(done.unwrap_err().contains("no debug probe is attached"));
    let (done, _) = run("read) echo 10076413;;\nattach) echo 'INFO netduinoplus2: no model yet';;", false);
    assert!(done.unwrap_err().contains("its log does not say"));
    let place = Place { board: "netduinoplus2".into(), probe: None, probe_rs: folder.path().join("absent") };
    let absent =
        flash(&Flash { model: None, place, program: "serve".into(), model_only: false }).unwrap_err().to_string();
    assert!(absent.contains("cargo install probe-rs-tools"), "{absent}");
}
