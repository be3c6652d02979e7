//! Operators whose weights are decoded while they run: a tile of output channels at a time.
//!
//! ```text
//! code ──> rows ──> tile (2 KB of scratch memory, or a larger block) ──> the operator over all pixels, for these channels ──> next tile
//! ```
//!
//! Scratch memory: the operator's own, then the decoder's state with a row, then the tile.

use super::{MAX_TILE_BYTES, Part, multiply};
use crate::coded::{Rows, Source};
use crate::format::op::Op;
use crate::kernels::Memory;
use crate::model::Model;
use crate::uses::has_circuits;

/// All tiles of an operator. Damaged code gives wrong outputs, nothing else.
pub(super) fn run<const USES: u64>(
    model: &Model<'_>,
    op: &Op<'_>,
    mut memory: Memory<'_>,
    scratch: &mut [i8],
) -> Option<()> {
    let source = Source::of::<USES>(model, op).ok()?;
    let [work, tile] = source.tile_scratch_bytes()?;
    let own = scratch.len().checked_sub(work + tile)? & !3;
    let (scratch, rest) = scratch.split_at_mut_checked(own)?;
    let (work, tile) = bytemuck::cast_slice_mut(rest).split_at_mut_checked(work)?;
    let (state, row) = work.split_at_mut_checked(source.state_bytes())?;
    let (mut circuit, mut flat);
    let decoder: &mut dyn Rows = match has_circuits(USES) {
        true => {
            circuit = source.decoder(state)?;
            &mut circuit
        }
        false => {
            flat = source.flat_decoder()?;
            &mut flat
        }
    };
    let mut unpacker = source.unpack(decoder, row)?;
    debug_assert!(tile.len() <= MAX_TILE_BYTES + 3);
    let step = source.tile_rows();
    for first in (0..source.n).step_by(step.max(1)) {
        let n = step.min(source.n - first);
        let bytes = tile.get_mut(..source.bytes(n))?;
        unpacker.fill(bytes);
        multiply::<USES>(model, op, memory.reborrow(), scratch, Part { bytes, rows: Some((first, n)) })?;
    }
    Some(())
}
