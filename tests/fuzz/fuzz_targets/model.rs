//! `.pith` files: parse, then run. The checksum is repaired, so that the fuzzer reaches what lies behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pith::format::crc32::crc32;
use quantize::pack::{Arena, ModelFile};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if let Some(body) = bytes.get(16..) {
        let crc = crc32(body).to_le_bytes();
        bytes[12..16].copy_from_slice(&crc);
    }
    let file = ModelFile::new(&bytes);
    let Ok(coded) = pith::Model::parse(file.as_bytes()) else { return };
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
});
