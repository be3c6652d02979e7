//! Circuits as integers, and streams coded with them: whatever is accepted decodes in bounded time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pith::circuit::rans64;
use pith::circuit::tree::Tree;

fuzz_target!(|data: &[u8]| {
    let Some((&[low, high], rest)) = data.split_first_chunk() else { return };
    let Some((circuit, stream)) = rest.split_at_checked(u16::from_le_bytes([low, high]) as usize) else { return };
    // A vector of its own is aligned.
    let bytes = circuit.to_vec();
    let (Ok(tree), Some(mut coder)) = (Tree::new_checked(&bytes), rans64::Decoder::new(stream)) else { return };
    if tree.state_words() > 1 << 18 || tree.variables() > 1 << 12 {
        return;
    }
    let mut state = vec![0; tree.state_words()];
    let mut sample = vec![0; tree.variables()];
    for _ in 0..2 {
        let _ = tree.decode(&mut coder, &mut state, &mut sample);
    }
});
