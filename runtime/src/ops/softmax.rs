//! Softmax in integers.

use crate::format::op;
use crate::kernels::Memory;

/// `e = table[max - q]`, `q = floor((512 e + sum) / (2 sum)) - 128`, at most 127. The sum is at least `table[0]` and below 2^31.
pub(super) fn softmax(s: &op::Softmax, table: &[u16], memory: Memory<'_>) {
    let Ok(table) = <&[u16; 256]>::try_from(table) else { return };
    for row in memory.in_place().chunks_exact_mut((s.columns as usize).max(1)) {
        let max = row.iter().copied().max().unwrap_or(0);
        let e = |q: i8| table[max.abs_diff(q) as usize] as u32;
        let sum = row.iter().fold(0u32, |sum, &q| sum.wrapping_add(e(q))).clamp(1, i32::MAX as u32);
        for q in row {
            let probability = (512 * e(*q)).wrapping_add(sum) / (2 * sum);
            *q = (probability.min(255) as i32 - 128) as i8;
        }
    }
}
