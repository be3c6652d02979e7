//! aarch64: NEON, which every such machine has, and the dot product and the matrix product of bytes, looked up on the machine. A [`Product`] says how
//! bytes are multiplied; tiles, filters and output stages are the same for all, four lanes of 32 bits in 32 registers. Maps and packed weights are those of
//! [`lanes`].
//!
//! Instructions beyond NEON are written as `asm!`, since stable Rust has no names for them, and each enables its own extension.

#![allow(unsafe_code)]

mod add;
mod depthwise;
mod dotprod;
mod i8mm;
mod matrix;
mod neon;
mod stage;

use super::lanes::{self, Map, Shape, Table};
use crate::isa::Isa;
use core::arch::aarch64::*;
use core::arch::asm;
use matrix::Product;

/// Four lanes of signed bytes.
const SHAPE: Shape =
    Shape { lanes: 4, wide: false, offset: 0, tiles: false, row: 4, taps: 4, complements: false, sparse: false };

/// The kernels of a set, if this machine has it.
pub fn table(isa: Isa) -> Option<&'static Table> {
    match isa {
        Isa::Neon => Some(&NEON),
        Isa::DotProd => has_dotprod().then_some(&DOTPROD),
        Isa::I8mm => (has_dotprod() && has_i8mm()).then_some(&I8MM),
        _ => None,
    }
}

/// Kernels of a [`Product`], with pixels at a time of one, two and four blocks.
macro_rules! entries {
    ($product:ty, [$($pixels:literal),*], $depthwise:path) => {
        Table {
            shape: <$product>::SHAPE,
            fill,
            matrix: |m, shape| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its instructions.
                unsafe { matrix::matrix::<$product, $($pixels),*>(m, shape) }
            },
            depthwise: |d, shape| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its instructions.
                unsafe { $depthwise(d, shape) }
            },
            fill_planes: |_, _, _| false,
            sparse: |_| false,
            add: add::add,
            max_pool: lanes::max_pool,
            sum_rows: lanes::sum_rows,
            quantize: lanes::quantize,
        }
    };
}

static NEON: Table = entries!(neon::Neon, [8, 4, 4], depthwise::by_taps);
static DOTPROD: Table = entries!(dotprod::DotProd, [8, 8, 5], depthwise::by_groups);
static I8MM: Table = entries!(i8mm::I8mm, [8, 8, 4], depthwise::by_groups);

/// See [`lanes::fill`].
fn fill(map: &Map, input: &[i8], to: &mut [u8]) -> bool {
    lanes::fill_with(map, input, to, 1, |from, to| {
        to.iter_mut().zip(from).for_each(|(to, &q)| *to = q as u8);
    })
    .is_some()
}

/// Whether an identification register has a field of four bits at `bit` that is not zero. Linux (from 4.11 on) lets programs read these registers.
#[cfg(any(target_os = "linux", target_os = "android"))]
macro_rules! has_field {
    ($register:literal, $bit:literal) => {{
        let value: u64;
        // SAFETY: reads a register of constants, or what the system says of it.
        unsafe {
            asm!(concat!("mrs {}, ", $register), out(reg) value, options(pure, nomem, nostack, preserves_flags));
        }
        value >> $bit & 0xF != 0
    }};
}

/// Whether the machine has `SDOT`.
fn has_dotprod() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return has_field!("ID_AA64ISAR0_EL1", 44);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    cfg!(target_feature = "dotprod")
}

/// Whether the machine has `SMMLA`.
fn has_i8mm() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return has_field!("ID_AA64ISAR1_EL1", 52);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    cfg!(target_feature = "i8mm")
}

/// Four sums plus the products of four groups of bytes.
///
/// # Safety
/// The machine has the dot product.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: by this function's contract.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b", acc = inout(vreg) acc, a = in(vreg) a,
            b = in(vreg) b, options(pure, nomem, nostack, preserves_flags));
    }
    acc
}
