//! AMX: a tile of sixteen pixels by 64 bytes times a tile of 64 bytes by sixteen channels, 16,384 products in one instruction.
//!
//! Tiles of activations are read where they lie in the map: rows of a tile are neighbouring pixels, so a run of a window is a row's bytes. Weights are
//! packed as for AVX-512 (a register of groups is a row of a tile), with runs cut into equal chunks of at most 64 bytes. Two tiles of pixels times two of
//! channels are held, their sums stored to a buffer and rescaled by AVX-512. A last tile of a row overlaps the one before it.
//!
//! | tiles | hold |
//! |---|---|
//! | 0 .. 4 | sums, `2 * pixels + channels` |
//! | 4, 5 | activations |
//! | 6, 7 | weights |

use super::avx512::{self, Avx512};
use crate::kernels::lanes::{self, Matrix, Shape, Simd};
use core::arch::asm;

/// Of tiles; vectors of activations are those of AVX-512.
pub(super) const SHAPE: Shape = Shape { tiles: true, sparse: false, ..avx512::SHAPE };

/// Rows of a tile.
const ROWS: usize = 16;

/// Pixels times groups below which a tile is too empty to be worth its instructions; 256 is a full one.
const LEAST: usize = 36;

/// What `LDTILECFG` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sums of one tile, written and read through pointers alone.
#[repr(C, align(64))]
struct Sums(#[allow(dead_code)] [[i32; 16]; ROWS]);

/// Asks Linux for the tiles' state; false if it refuses or there is no Linux.
pub(super) fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: the call reads no memory and changes nothing but which state this process may use.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

macro_rules! load {
    ($tile:literal, $from:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{from} + {stride}]"), from = in(reg) $from, stride = in(reg) $stride,
            options(nostack, readonly, preserves_flags))
    };
}

macro_rules! store {
    ($tile:literal, $to:expr) => {
        asm!(concat!("tilestored [{to} + {stride}], tmm", $tile), to = in(reg) $to, stride = in(reg) 64usize,
            options(nostack, preserves_flags))
    };
}

macro_rules! multiply {
    ($sums:literal, $activations:literal, $weights:literal) => {
        asm!(
            concat!("tdpbusd tmm", $sums, ", tmm", $activations, ", tmm", $weights),
            options(nostack, nomem, preserves_flags)
        )
    };
}

/// See [`lanes::matrix`]; what would leave tiles mostly empty is left to AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn matrix(m: &mut Matrix<'_>, shape: Shape) -> bool {
    // Windows that are equally far apart throughout are one row.
    if m.row_step == m.width * m.pixel_step {
        m.width = m.pixels;
    }
    match m.width.min(ROWS) * shape.chunks(m.run).1 < LEAST {
        true => avx512::matrix(m, shape),
        false => m.fits(shape) && tiles(m, shape),
    }
}

/// Through tiles, for what [`Matrix::fits`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn tiles(m: &mut Matrix<'_>, shape: Shape) -> bool {
    let (rows, (_, groups)) = (ROWS.min(m.width), shape.chunks(m.run));
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for tile in 0..8 {
        (config.rows[tile], config.row_bytes[tile]) = match tile {
            4 | 5 => (rows as u8, 4 * groups as u16),
            6 | 7 => (groups as u8, 64),
            _ => (rows as u8, 64),
        };
    }
    // SAFETY: the machine has tiles and this process may use them, since a table with this function exists only then; the configuration is valid:
    // 1 to 16 rows of 4 to 64 bytes. What tiles read and write is argued at each of them.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags));
        let mut channel = 0;
        while channel < m.n {
            if m.n - channel > 16 {
                column::<2>(m, shape, rows, channel);
                channel += 32;
            } else {
                column::<1>(m, shape, rows, channel);
                channel += 16;
            }
        }
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
    true
}

/// A tile of pixels: the index of the first, and where its window begins in the map.
#[derive(Clone, Copy)]
struct Pixels {
    first: usize,
    start: usize,
}

/// `R` blocks of channels for all pixels, two tiles of `rows` pixels at a time. While tiles are multiplied, the sums before them are rescaled.
///
/// # Safety
/// [`Matrix::fits`]; tiles are configured for `rows` pixels and the groups of a chunk; `R` blocks begin at `channel`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn column<const R: usize>(m: &mut Matrix<'_>, shape: Shape, rows: usize, channel: usize) {
    let block_bytes = shape.block_bytes(m.runs, m.run);
    let per_row = m.width.div_ceil(ROWS);
    let tiles = m.pixels / m.width * per_row;
    let pixels = |tile: usize, m: &Matrix<'_>| {
        let (y, x) = (tile / per_row, (tile % per_row * ROWS).min(m.width - rows));
        Pixels { first: y * m.width + x, start: y * m.row_step + x * m.pixel_step }
    };
    let mut buffers = [const { core::mem::MaybeUninit::<[Sums; 4]>::uninit() }; 2];
    let mut buffers = buffers.each_mut().map(|buffer| buffer.as_mut_ptr().cast::<Sums>());
    let mut before = None;
    // SAFETY: stages and weights of `R` blocks lie at `block`; the last tile of a row ends with the row. Sums go to buffers of four whole tiles, and are
    // read from the other buffer, which the tiles before were stored to.
    unsafe {
        let block = m.weights.as_ptr().add(channel / 16 * block_bytes);
        let stages = lanes::load_stages::<Avx512, R>(block, block_bytes, 16, m.to.zero_point);
        for tile in (0..tiles).step_by(2) {
            let pair = [pixels(tile, m), pixels((tile + 1).min(tiles - 1), m)];
            multiply::<R>(m, shape, block, block_bytes, pair);
            if let Some(pair) = before {
                rescale(m, &stages, buffers[1], rows, channel, pair);
            }
            store!(0, buffers[0]);
            store!(2, buffers[0].add(2));
            if R == 2 {
                store!(1, buffers[0].add(1));
                store!(3, buffers[0].add(3));
            }
            before = Some(pair);
            buffers.swap(0, 1);
        }
        if let Some(pair) = before {
            rescale(m, &stages, buffers[1], rows, channel, pair);
        }
    }
}

/// Sums of two tiles of pixels times `R` blocks.
///
/// # Safety
/// That of [`column`]; windows of a whole tile begin at each start.
#[inline(always)]
unsafe fn multiply<const R: usize>(
    m: &Matrix<'_>,
    shape: Shape,
    block: *const u8,
    block_bytes: usize,
    pixels: [Pixels; 2],
) {
    let (chunks, groups) = shape.chunks(m.run);
    // SAFETY: rows of activations are windows of `fits`, `pixel_step` apart, read in chunks of their runs; tiles of weights are `groups` rows of the
    // block's packed groups.
    unsafe {
        let mut weights = block.add(Shape::stage_bytes(16));
        // Sums begin with the bias, which every row of a tile reads from the same place.
        load!(0, block, 0usize);
        load!(2, block, 0usize);
        if R == 2 {
            load!(1, block.add(block_bytes), 0usize);
            load!(3, block.add(block_bytes), 0usize);
        }
        for run in 0..m.runs {
            let at = m.map.as_ptr().add(run * m.run_step);
            for chunk in 0..chunks {
                let at = at.add(chunk * 4 * groups);
                load!(6, weights, 64usize);
                load!(4, at.add(pixels[0].start), m.pixel_step);
                multiply!(0, 4, 6);
                if R == 2 {
                    load!(7, weights.add(block_bytes), 64usize);
                    multiply!(1, 4, 7);
                }
                load!(5, at.add(pixels[1].start), m.pixel_step);
                multiply!(2, 5, 6);
                if R == 2 {
                    multiply!(3, 5, 7);
                }
                weights = weights.add(64 * groups);
            }
        }
    }
}

/// Stored sums of two tiles to outputs.
///
/// # Safety
/// AVX-512 is enabled; four tiles lie at `sums`; `rows` pixels follow each first one, `R` blocks of channels begin at `channel`.
#[inline(always)]
unsafe fn rescale<const R: usize>(
    m: &mut Matrix<'_>,
    stages: &[lanes::Stage<Avx512>; R],
    sums: *const Sums,
    rows: usize,
    channel: usize,
    pixels: [Pixels; 2],
) {
    for (half, pixels) in pixels.into_iter().enumerate() {
        // SAFETY: outputs of `rows` pixels from the first lie inside (`fits`), and channels below `n` are written.
        unsafe {
            let stored = Stored { sums: sums.add(2 * half), stages: *stages, doubles: m.doubles };
            let out = m.output.as_mut_ptr().cast::<u8>().add(pixels.first * m.n + channel);
            let to = lanes::Destination { out, n: m.n, left: m.n - channel, to: m.to };
            to.write::<Avx512, _, R>(rows, rows, &stored);
        }
    }
}

/// Stored tiles of one row of pixels, a block of channels each.
struct Stored<const R: usize> {
    sums: *const Sums,
    stages: [lanes::Stage<Avx512>; R],
    doubles: bool,
}

impl<const R: usize> lanes::Rescaled<Avx512> for Stored<R> {
    #[inline(always)]
    unsafe fn at(&self, pixel: usize, block: usize) -> <Avx512 as Simd>::V {
        // SAFETY: the features are enabled, and tile `block` has row `pixel`.
        unsafe {
            let sum = Avx512::load(self.sums.add(block).cast::<u8>().add(64 * pixel));
            self.stages[block].rescale(sum, self.doubles)
        }
    }
}
