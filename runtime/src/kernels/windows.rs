//! Windows: runs of activations that lie in memory as a matrix in [`Layout::Rows`] wants them, so that nothing is collected.

use super::{Output, generic};
use crate::format::blocks::Blocks;
#[cfg(doc)]
use crate::format::blocks::Layout;

/// A matrix and its output stage.
#[derive(Debug)]
pub struct Windows<'a> {
    blocks: Blocks<'a>,
    /// From the outputs of a pixel to those of the next.
    pitch: usize,
    to: Output,
    /// Which kernel of the instruction set serves.
    #[cfg(pith_helium)]
    kernel: Option<super::helium::Kernel>,
}

impl<'a> Windows<'a> {
    /// Looks at the matrix once. `pitch` is at least its `n`.
    pub fn new(blocks: &Blocks<'a>, pitch: usize, to: Output) -> Windows<'a> {
        Windows {
            blocks: *blocks,
            pitch,
            to,
            #[cfg(pith_helium)]
            kernel: super::helium::Kernel::of(blocks, to),
        }
    }

    /// Multiplies: the `n` elements of output pixel `i`, from `output[i * pitch]` on, are those of the window at `activations[i * step ..]`; there are
    /// as many pixels as there is output for. Kernels may read `padded_k` activations of a window; those beyond `k` meet weights of zero.
    pub fn multiply<const USES: u64>(&self, activations: &[i8], step: usize, output: &mut [i8]) {
        #[cfg(pith_helium)]
        if self.kernel.is_some_and(|kernel| {
            super::helium::windows::<USES>(kernel, &self.blocks, activations, step, self.pitch, self.to, output)
        }) {
            return;
        }
        generic::windows(&self.blocks, activations, step, self.pitch, self.to, output);
    }
}
