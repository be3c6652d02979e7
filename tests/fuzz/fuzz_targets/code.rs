//! Coded constants: whatever a header accepts decodes in bounded time, and a second decoder gives the same weights.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pith::circuit::Coded;

fuzz_target!(|data: &[u8]| {
    let Some((&[bits, low, high], code)) = data.split_first_chunk() else { return };
    let len = u16::from_le_bytes([low, high]) as usize;
    let Ok(coded) = Coded::new_checked(code, bits, len) else { return };
    if coded.state_words() > 1 << 18 {
        return;
    }
    let decoded = || {
        let mut state = vec![0x5A5A_5A5A; coded.state_words()];
        let mut decoder = coded.decoder(&mut state).expect("the state has the words asked for");
        let mut weights = vec![0; len];
        weights.chunks_mut(coded.shape().row()).for_each(|row| decoder.row(row));
        (weights, decoder.is_finished())
    };
    assert_eq!(decoded(), decoded());
});
