//! Block-sparse weights: output pixels in the lanes, since channels have their blocks in different places.
//!
//! ```text
//! for tiles of four vectors of pixels (neighbours in a row of the output)
//!     for bands of one or two channels
//!         sums[row][vector] = bias
//!         for blocks that are stored:  sums[row][vector] += group of the row (broadcast) * groups of the pixels, `offset` behind the tile
//!     outputs of four channels, turned so that those of a pixel lie together
//! ```
//!
//! Groups of neighbouring pixels lie side by side in *planes*: a map `[group][row % stride_h][column % stride_w][row / stride_h][column / stride_w]`.
//! So a block reads vectors at one offset from where its tile begins, and the offset is all that is left of its place.

#![allow(unsafe_code, clippy::missing_safety_doc)]

use super::map::{Map, SLACK};
use super::{STAGE_WORDS, Simd, Stage, clamped};
use crate::kernels::Output;

/// Vectors of a tile.
const TILE: usize = 4;

/// A map whose groups are planes.
#[derive(Clone, Copy, Debug)]
pub struct Planes {
    /// Borders and input; the pitch is not used.
    pub map: Map,
    #[allow(missing_docs)]
    pub stride_h: usize,
    #[allow(missing_docs)]
    pub stride_w: usize,
}

impl Planes {
    /// Groups of a row of one phase: what lies between two rows of windows.
    pub const fn columns(&self) -> usize {
        self.map.columns.div_ceil(self.stride_w)
    }

    /// Groups of a phase of rows and columns.
    const fn phase(&self) -> usize {
        self.map.rows.div_ceil(self.stride_h) * self.columns()
    }

    /// Bytes of a plane.
    pub const fn plane_bytes(&self) -> usize {
        4 * self.stride_h * self.stride_w * self.phase()
    }

    /// Bytes of all planes of groups of `depth` channels, with slack.
    pub const fn bytes(&self, depth: usize) -> usize {
        self.map.channels / depth * self.plane_bytes() + SLACK
    }

    /// Place of a pixel in a plane.
    const fn place(&self, row: usize, column: usize) -> usize {
        let phase = row % self.stride_h * self.stride_w + column % self.stride_w;
        phase * self.phase() + row / self.stride_h * self.columns() + column / self.stride_w
    }

    /// Bytes from a window's first group to the group of a tap.
    pub const fn offset(&self, group: usize, row: usize, column: usize) -> usize {
        group * self.plane_bytes() + 4 * self.place(row, column)
    }
}

/// Copies an input into its planes; false if a length is wrong.
#[inline(always)]
pub fn fill_planes<S: Simd>(planes: &Planes, input: &[i8], to: &mut [u8]) -> bool {
    match S::WIDE {
        true => fill_with::<2>(planes, input, to, |[a, b]| (a as u16 as u32) | (b as u16 as u32) << 16),
        false => {
            let flip = [S::OFFSET as u8; 4].map(|offset| offset & 0x80);
            fill_with::<4>(planes, input, to, |four| {
                u32::from_le_bytes(four.map(|q| q as u8)) ^ u32::from_le_bytes(flip)
            })
        }
    }
    .is_some()
}

/// [`fill_planes`] with groups of `DEPTH` channels; none if a length is wrong.
#[inline(always)]
fn fill_with<const DEPTH: usize>(
    planes: &Planes,
    input: &[i8],
    to: &mut [u8],
    group: impl Fn([i8; DEPTH]) -> u32,
) -> Option<()> {
    let (map, of_pixel) = (&planes.map, planes.map.channels / DEPTH);
    let to = to.get_mut(..planes.bytes(DEPTH))?;
    if [map.rows, map.columns] != [map.in_h, map.in_w] {
        let border = group([map.zero_point; DEPTH]).to_le_bytes();
        to.as_chunks_mut().0.iter_mut().for_each(|to| *to = border);
    }
    for (row, from) in (map.top..).zip(input.chunks_exact((map.in_w * map.channels).max(1))).take(map.in_h) {
        for (i, to) in to.chunks_exact_mut(planes.plane_bytes().max(4)).take(of_pixel).enumerate() {
            // Columns of a phase lie side by side.
            for first in 0..planes.stride_w.min(map.in_w) {
                let groups = from.as_chunks::<DEPTH>().0.iter().skip(first * of_pixel + i);
                let to = to.get_mut(4 * planes.place(row, map.left + first)..)?.as_chunks_mut().0.iter_mut();
                let columns = groups.step_by((planes.stride_w * of_pixel).max(1));
                to.zip(columns).for_each(|(to, from)| *to = group(*from).to_le_bytes());
            }
        }
    }
    Some(())
}

/// A block-sparse matrix times windows of planes.
#[derive(Debug)]
pub struct Sparse<'a> {
    /// Planes, with slack, from the first row of windows on.
    pub planes: &'a [u8],
    #[allow(missing_docs)]
    pub plane_bytes: usize,
    /// Rows of the output, and pixels of each.
    pub out_h: usize,
    #[allow(missing_docs)]
    pub out_w: usize,
    /// Bytes from one row of windows to the next.
    pub row_step: usize,
    /// Rows of a block.
    pub rows: usize,
    /// Bands: `count: u32`, an output stage of [`STAGE_WORDS`] for each row, then for each block `offset: u32` and the rows' groups.
    pub bands: &'a [u8],
    /// Output channels.
    pub n: usize,
    /// Whether any channel's sum is doubled first.
    pub doubles: bool,
    /// Bounds.
    pub to: Output,
    /// `[pixel, n]`.
    pub output: &'a mut [i8],
}

/// Bytes of a band before its blocks.
pub const fn band_bytes(rows: usize) -> usize {
    4 + 4 * STAGE_WORDS * rows
}

/// Bytes of a block.
pub const fn block_bytes(rows: usize, wide: bool) -> usize {
    4 + rows * if wide { 8 } else { 4 }
}

/// See [`Sparse`]; false if a length is wrong or a block leaves the planes.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn sparse<S: Simd>(m: &mut Sparse<'_>) -> bool {
    // SAFETY: by this function's contract.
    unsafe {
        match m.rows {
            1 => all_tiles::<S, 1>(m),
            2 => all_tiles::<S, 2>(m),
            _ => None,
        }
        .is_some()
    }
}

/// Some vectors of pixels.
#[derive(Clone, Copy, Default)]
struct Tile {
    /// Bytes from the first window to those of each vector.
    starts: [usize; TILE],
    /// Index of each vector's first pixel.
    pixels: [usize; TILE],
    /// Pixels of each vector that are wanted.
    counts: [usize; TILE],
}

/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn all_tiles<S: Simd, const R: usize>(m: &mut Sparse<'_>) -> Option<()> {
    if m.output.len() != m.out_h * m.out_w * m.n || m.output.is_empty() {
        return None;
    }
    let vectors = m.out_w.div_ceil(S::LANES);
    let last = (m.out_h - 1) * m.row_step + 4 * vectors * S::LANES;
    let limit = m.planes.len().checked_sub(last + if S::WIDE { m.plane_bytes } else { 0 })?;
    let mut tile = Tile::default();
    for first in (0..m.out_h * vectors).step_by(TILE) {
        for p in 0..TILE {
            let vector = first + p;
            // Places beyond the last vector compute it again and write nothing.
            let (y, x) = match vector < m.out_h * vectors {
                true => (vector / vectors, vector % vectors * S::LANES),
                false => (m.out_h - 1, (vectors - 1) * S::LANES),
            };
            tile.starts[p] = y * m.row_step + 4 * x;
            tile.pixels[p] = y * m.out_w + x;
            tile.counts[p] = if vector < m.out_h * vectors { (m.out_w - x).min(S::LANES) } else { 0 };
        }
        // SAFETY: by this function's contract; vectors of the tile begin at most `last` less a vector behind the first window.
        unsafe { one_tile::<S, R>(m, &tile, limit)? };
    }
    Some(())
}

/// All channels of a tile.
///
/// # Safety
/// That of [`Simd`]; vectors can be read `limit` bytes behind each of the tile's starts (and, of wide sets, a plane behind that), and the tile's pixels lie in
/// the output.
#[inline(always)]
unsafe fn one_tile<S: Simd, const R: usize>(m: &mut Sparse<'_>, tile: &Tile, limit: usize) -> Option<()> {
    let mut bands = m.bands;
    // SAFETY: by this function's contract; `band` reads what it is given.
    unsafe {
        let mut four = [S::splat(0); 4];
        let mut filled = 0;
        for channel in (0..m.n).step_by(R) {
            let (count, rest) = bands.split_first_chunk()?;
            let count = u32::from_le_bytes(*count) as usize;
            let (stage, rest) = rest.split_at_checked(band_bytes(R) - 4)?;
            let (blocks, rest) = rest.split_at_checked(count.checked_mul(block_bytes(R, S::WIDE))?)?;
            bands = rest;
            let rows = band::<S, R>(m, tile, limit, stage.as_ptr(), blocks)?;
            for (to, row) in four.iter_mut().skip(filled).zip(rows) {
                *to = row;
            }
            filled += R;
            if filled == 4 || channel + R >= m.n {
                let first = channel + R - filled;
                write::<S>(m, tile, four, first, (m.n - first).min(4));
                filled = 0;
            }
        }
    }
    Some(())
}

/// A band of a tile: a vector of bytes for each row, in the order of [`Simd::narrow`]; none if a block leaves the planes.
///
/// # Safety
/// That of [`one_tile`]; `R` stages lie at `stage`.
#[inline(always)]
unsafe fn band<S: Simd, const R: usize>(
    m: &Sparse<'_>,
    tile: &Tile,
    limit: usize,
    stage: *const u8,
    blocks: &[u8],
) -> Option<[S::V; R]> {
    // SAFETY: groups and stages lie in `blocks` and at `stage`; an offset is compared with `limit` before vectors are read behind it.
    unsafe {
        let stage = stage.cast::<[i32; STAGE_WORDS]>();
        let mut sums = [[S::splat(0); TILE]; R];
        for r in 0..R {
            sums[r] = [S::splat(stage.add(r).read_unaligned()[0]); TILE];
        }
        let planes = m.planes.as_ptr();
        let starts = tile.starts;
        for block in blocks.chunks_exact(block_bytes(R, S::WIDE)) {
            let block = block.as_ptr();
            let offset = block.cast::<u32>().read_unaligned() as usize;
            if offset > limit {
                return None;
            }
            sums = add_groups::<S, R>(sums, block.add(4), planes.add(offset), &starts);
            if S::WIDE {
                sums = add_groups::<S, R>(sums, block.add(4 + 4 * R), planes.add(offset + m.plane_bytes), &starts);
            }
        }
        // Indices are constants, so that sums stay in registers.
        let at = |row: usize| stage.add(row).read_unaligned();
        let mut rows = [finish::<S>(m, &splat_stage::<S>(at(0), m.to.zero_point), sums[0]); R];
        if R == 2 {
            rows[R - 1] = finish::<S>(m, &splat_stage::<S>(at(R - 1), m.to.zero_point), sums[R - 1]);
        }
        Some(rows)
    }
}

/// Outputs of a row.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn finish<S: Simd>(m: &Sparse<'_>, stage: &Stage<S>, [a, b, c, d]: [S::V; TILE]) -> S::V {
    // SAFETY: by this function's contract.
    unsafe {
        let (a, b) = (stage.rescale(a, m.doubles), stage.rescale(b, m.doubles));
        let (c, d) = (stage.rescale(c, m.doubles), stage.rescale(d, m.doubles));
        clamped::<S>(S::narrow([a, b, c, d]), m.to)
    }
}

/// # Safety
/// That of [`Simd`]; `R` groups lie at `groups`, vectors `starts` behind `from`.
#[inline(always)]
unsafe fn add_groups<S: Simd, const R: usize>(
    mut sums: [[S::V; TILE]; R],
    groups: *const u8,
    from: *const u8,
    starts: &[usize; TILE],
) -> [[S::V; TILE]; R] {
    // SAFETY: by this function's contract.
    unsafe {
        let mut weights = [S::splat(0); R];
        for r in 0..R {
            weights[r] = S::group(groups.add(4 * r));
        }
        for p in 0..TILE {
            let activations = S::load(from.add(starts[p]));
            for r in 0..R {
                sums[r][p] = S::dot(sums[r][p], activations, weights[r]);
            }
        }
        sums
    }
}

/// The stage of one channel in every lane.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn splat_stage<S: Simd>([bias, multiplier, shift, doublings]: [i32; STAGE_WORDS], zero_point: i32) -> Stage<S> {
    let addend = (2 * zero_point + 1).wrapping_shl((shift - 1) as u32);
    // SAFETY: by this function's contract.
    unsafe {
        Stage {
            bias: S::splat(bias),
            multiplier: S::splat(multiplier),
            addend: S::splat(addend),
            shift: S::splat(shift),
            doublings: S::splat(doublings),
        }
    }
}

/// Writes `left` of four channels from `channel` on.
///
/// # Safety
/// That of [`Simd`]; the tile's pixels have these channels in the output.
#[inline(always)]
unsafe fn write<S: Simd>(m: &mut Sparse<'_>, tile: &Tile, [a, b, c, d]: [S::V; 4], channel: usize, left: usize) {
    // SAFETY: a buffer holds a vector of the widest set; outputs are written as this function's contract allows.
    unsafe {
        let (ab, cd) =
            ([S::zip8::<false>(a, b), S::zip8::<true>(a, b)], [S::zip8::<false>(c, d), S::zip8::<true>(c, d)]);
        let vectors = [
            S::zip16::<false>(ab[0], cd[0]),
            S::zip16::<true>(ab[0], cd[0]),
            S::zip16::<false>(ab[1], cd[1]),
            S::zip16::<true>(ab[1], cd[1]),
        ];
        for p in 0..TILE {
            let mut buffer = [0u32; 16];
            S::store(vectors[p], buffer.as_mut_ptr().cast());
            let mut to = m.output.as_mut_ptr().cast::<u8>().wrapping_add(tile.pixels[p] * m.n + channel);
            for word in buffer.iter().take(tile.counts[p]) {
                if left == 4 {
                    to.cast::<u32>().write_unaligned(*word);
                } else {
                    core::ptr::copy_nonoverlapping((word as *const u32).cast(), to, left);
                }
                to = to.wrapping_add(m.n);
            }
        }
    }
}
