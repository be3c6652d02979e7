//! An update that is cut off at any byte leaves a board that starts with the old model or with the new one.

use crate::flash::Flash;
use pith::format::crc32::crc32;
use pith_link::slots::{Failure, Slots};

const CAPACITY: usize = 4096;

/// A file that says whether it is whole: its last four bytes are the checksum of those before.
fn file(seed: u8, bytes: usize) -> Vec<u8> {
    let mut file: Vec<u8> = (0..bytes - 4).map(|i| (i as u8).wrapping_mul(seed)).collect();
    file.extend(crc32(&file).to_le_bytes());
    file
}

fn is_whole(file: &'static [u8]) -> bool {
    file.split_last_chunk::<4>().is_some_and(|(data, sum)| crc32(data).to_le_bytes() == *sum)
}

fn update(slots: &mut Slots<Flash>, file: &[u8]) -> Result<(), Failure> {
    slots.begin(file.len())?;
    for (i, part) in file.chunks(256).enumerate() {
        slots.write(256 * i, part)?;
    }
    slots.commit(crc32(file)).map(|_| ())
}

fn start(flash: &Flash) -> Slots<Flash> {
    Slots::new(flash.clone(), is_whole)
}

#[test]
fn updates_alternate_between_slots_and_survive_a_restart() {
    let flash = Flash::new(CAPACITY);
    assert_eq!(start(&flash).running(), None);
    for round in 0..5u32 {
        let new = file(round as u8 + 3, 300 + 250 * round as usize);
        update(&mut start(&flash), &new).unwrap();
        let running = start(&flash).running().unwrap();
        assert_eq!((running.version, running.file), (round, new.as_slice()));
    }
}

#[test]
fn an_update_cut_off_at_every_byte_leaves_the_old_model_or_the_new() {
    let mut flash = Flash::new(CAPACITY);
    let (first, second) = (file(3, 700), file(5, 901));
    update(&mut start(&flash), &first).unwrap();
    let before = flash.bytes.borrow().clone();
    let (mut olds, mut news) = (0, 0);
    for cut in 0.. {
        *flash.bytes.borrow_mut() = before.clone();
        let mut slots = start(&flash);
        *flash.left.borrow_mut() = cut;
        let done = update(&mut slots, &second);
        *flash.left.borrow_mut() = usize::MAX;
        let running = start(&flash).running().unwrap_or_else(|| panic!("no model after {cut} bytes"));
        match (running.version, running.file) {
            (0, file) => assert_eq!(file, first, "{cut}"),
            (1, file) => assert_eq!(file, second, "{cut}"),
            (version, _) => panic!("version {version} after {cut} bytes"),
        }
        olds += usize::from(running.version == 0);
        news += usize::from(running.version == 1);
        // The board goes on from there.
        update(&mut start(&flash), &second).unwrap();
        assert_eq!(start(&flash).running().unwrap().file, second);
        if done.is_ok() {
            break;
        }
    }
    println!("{olds} cuts leave the old model, {news} the new one");
    assert!(olds > 2000 && news >= 1);
    // The very first update may also leave none.
    flash = Flash::new(CAPACITY);
    for cut in (0..3000).step_by(7) {
        *flash.left.borrow_mut() = cut;
        let done = update(&mut start(&flash), &first);
        *flash.left.borrow_mut() = usize::MAX;
        assert!(done.is_ok() || start(&flash).running().is_none_or(|running| running.file == first));
    }
}

#[test]
fn what_is_out_of_order_is_refused() {
    let flash = Flash::new(CAPACITY);
    let mut slots = start(&flash);
    assert_eq!(slots.write(0, &[0; 8]), Err(Failure::OutOfOrder));
    assert_eq!(slots.commit(0), Err(Failure::OutOfOrder));
    assert_eq!(slots.begin(CAPACITY), Err(Failure::TooLong));
    assert_eq!(slots.begin(usize::MAX), Err(Failure::TooLong));
    slots.begin(20).unwrap();
    assert_eq!(slots.write(0, &[0; 12]), Err(Failure::OutOfOrder), "no whole number of words");
    slots.write(0, &[0; 16]).unwrap();
    assert_eq!(slots.write(0, &[0; 16]), Err(Failure::OutOfOrder));
    assert_eq!(slots.write(16, &[0; 8]), Err(Failure::OutOfOrder), "beyond the end");
    assert_eq!(slots.write(usize::MAX, &[0; 8]), Err(Failure::OutOfOrder));
    assert_eq!(slots.commit(0), Err(Failure::OutOfOrder), "not whole");
    slots.write(16, &[0; 4]).unwrap();
    assert_eq!(slots.commit(1), Err(Failure::Checksum));
    assert_eq!(slots.running(), None);
    *flash.left.borrow_mut() = 0;
    assert_eq!(slots.begin(20), Err(Failure::Flash));
}

#[test]
fn versions_count_around_their_wrap() {
    let flash = Flash::new(CAPACITY);
    let model = file(9, 100);
    for (slot, version) in [(0, u32::MAX), (1, 0)] {
        let mut bytes = flash.bytes.borrow_mut();
        let start = slot * CAPACITY / 2;
        bytes[start..start + 256].copy_from_slice(&pith_link::slots::head(version, 100));
        bytes[start + 256..start + 356].copy_from_slice(&model);
    }
    assert_eq!(start(&flash).running().unwrap().version, 0);
}
