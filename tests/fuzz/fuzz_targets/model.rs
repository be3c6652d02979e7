//! `.pith` files: parse, then run, every precision. Checksums are repaired, so that the fuzzer reaches what lies behind them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pith::format::crc32::{crc32, crc32_behind};
use quantize::pack::{Arena, ModelFile};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    seal(&mut bytes);
    let file = ModelFile::new(&bytes);
    pith::precisions(file.as_bytes()).filter_map(Result::ok).for_each(run);
});

/// Writes the checksum of every precision, as far as their lengths say where they are.
fn seal(bytes: &mut [u8]) {
    let (mut at, mut before) = (0, None);
    while let Some(file) = bytes.get_mut(at..).filter(|file| file.len() > 16) {
        let file_bytes = u32::from_le_bytes([file[8], file[9], file[10], file[11]]) as usize;
        let end = if (80..file.len()).contains(&file_bytes) { file_bytes } else { file.len() };
        let crc = before.map_or_else(|| crc32(&file[16..end]), |before| crc32_behind(before, &file[16..end]));
        file[12..16].copy_from_slice(&crc.to_le_bytes());
        (at, before) = (at + end.next_multiple_of(16), Some(crc));
    }
}

fn run(coded: pith::Model<'_>) {
    if coded.decoded_bytes() > 1 << 20 || coded.decode_scratch_bytes() > 1 << 20 {
        return;
    }
    let (mut decoded, mut scratch) = (Arena::new(coded.decoded_bytes(), 0), vec![0; coded.decode_scratch_bytes()]);
    let undamaged = coded.verify(&mut scratch).is_ok();
    let Ok(model) = coded.decode_into(decoded.bytes_mut(), &mut scratch) else {
        assert!(!undamaged);
        return;
    };
    // A small file may claim any arena and any number of steps over it; the fuzzer wants quick ones.
    if model.arena_bytes() > 1 << 16 || model.ops().map(|(_, op)| op.macs()).sum::<u64>() > 1 << 22 {
        return;
    }
    let mut arena = Arena::new(model.arena_bytes(), 0xA5);
    if let Ok(mut engine) = pith::Engine::new(&model, arena.bytes_mut()) {
        engine.run();
    }
    let isa = pith::Isa::detect();
    let mut workspace = vec![0; pith::Engine::workspace_bytes(&model, isa)];
    if let Ok(mut engine) = pith::Engine::with_workspace(&model, arena.bytes_mut(), isa, &mut workspace) {
        engine.run();
    }
}
