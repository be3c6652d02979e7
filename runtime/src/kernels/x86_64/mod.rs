//! x86-64: SSE2, AVX2, AVX-VNNI, AVX-512 VNNI and AMX, looked up on the machine.

#![allow(unsafe_code)]

/// Functions of [`lanes`] with a set's features.
macro_rules! functions {
    ($simd:ty, [$($pixels:literal),*], $features:literal) => {
        /// See [`lanes::fill`].
        #[target_feature(enable = $features)]
        pub fn fill(map: &lanes::Map, input: &[i8], to: &mut [u8]) -> bool {
            lanes::fill::<$simd>(map, input, to)
        }

        /// See [`lanes::matrix`].
        #[target_feature(enable = $features)]
        pub fn matrix(m: &mut lanes::Matrix<'_>, shape: lanes::Shape) -> bool {
            // SAFETY: the features are enabled.
            unsafe { lanes::matrix::<$simd, $($pixels),*>(m, shape) }
        }

        /// See [`lanes::depthwise`].
        #[target_feature(enable = $features)]
        pub fn depthwise(d: &mut lanes::Depthwise<'_>, shape: lanes::Shape) -> bool {
            // SAFETY: the features are enabled.
            unsafe { lanes::depthwise::<$simd>(d, shape) }
        }

        /// See [`lanes::fill_planes`].
        #[target_feature(enable = $features)]
        pub fn fill_planes(planes: &lanes::Planes, input: &[i8], to: &mut [u8]) -> bool {
            lanes::fill_planes::<$simd>(planes, input, to)
        }

        /// See [`lanes::sparse`].
        #[target_feature(enable = $features)]
        pub fn sparse(m: &mut lanes::Sparse<'_>) -> bool {
            // SAFETY: the features are enabled.
            unsafe { lanes::sparse::<$simd>(m) }
        }

        /// See [`lanes::add`].
        #[target_feature(enable = $features)]
        pub fn add(sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
            // SAFETY: the features are enabled.
            unsafe { lanes::add::<$simd>(sum, memory, rhs) }
        }

        /// See [`lanes::max_pool`].
        #[target_feature(enable = $features)]
        pub fn max_pool(p: &op::Pool, input: &[i8], output: &mut [i8]) {
            lanes::max_pool(p, input, output);
        }

        /// See [`lanes::quantize`].
        #[target_feature(enable = $features)]
        pub fn quantize(port: &Port, raw: &[f32], to: &mut [i8]) {
            lanes::quantize(port, raw, to);
        }

        /// See [`lanes::sum_rows`].
        #[target_feature(enable = $features)]
        pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
            lanes::sum_rows(input, step, rows, acc);
        }
    };
}

mod amx;
mod avx2;
mod avx512;
mod sse2;

use super::lanes::{Shape, Table};
use crate::isa::Isa;
use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU32, Ordering};

/// The kernels of a set, if this machine has it.
pub fn table(isa: Isa) -> Option<&'static Table> {
    if !has(isa) {
        return None;
    }
    match isa {
        Isa::Sse2 => Some(&SSE2),
        Isa::Avx2 => Some(&AVX2),
        Isa::AvxVnni => Some(&AVX_VNNI),
        Isa::Avx512Vnni => Some(&AVX512),
        Isa::Amx => Some(&AMX),
        _ => None,
    }
}

/// Entries of a table: functions whose features [`table`] has found.
macro_rules! entries {
    ($shape:expr, $module:path, $matrix:path) => {{
        use $module as set;
        Table {
            shape: $shape,
            fill: |map, input, to| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::fill(map, input, to) }
            },
            matrix: |m, shape| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { $matrix(m, shape) }
            },
            depthwise: |d, shape| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::depthwise(d, shape) }
            },
            fill_planes: |planes, input, to| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::fill_planes(planes, input, to) }
            },
            sparse: |m| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::sparse(m) }
            },
            add: |sum, memory, rhs| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::add(sum, memory, rhs) }
            },
            max_pool: |p, input, output| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::max_pool(p, input, output) }
            },
            quantize: |port, raw, to| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::quantize(port, raw, to) }
            },
            sum_rows: |input, step, rows, acc| {
                // SAFETY: tables are private to `table`, which hands one out only where the machine has its features.
                unsafe { set::sum_rows(input, step, rows, acc) }
            },
        }
    }};
}

static SSE2: Table = entries!(Shape::of::<sse2::Sse2>(), sse2, set::matrix);
static AVX2: Table = entries!(Shape::of::<avx2::Avx2<false>>(), avx2::plain, set::matrix);
static AVX_VNNI: Table = entries!(Shape::of::<avx2::Avx2<true>>(), avx2::vnni, set::matrix);
static AVX512: Table = entries!(avx512::SHAPE, avx512, set::matrix);
static AMX: Table = entries!(amx::SHAPE, avx512, amx::matrix);

/// Whether the processor has a set and the system keeps its registers.
fn has(isa: Isa) -> bool {
    /// Sets that were looked for, a bit each, and above them those that were found: CPUID takes microseconds in a virtual machine.
    static KNOWN: AtomicU32 = AtomicU32::new(0);
    let (sought, found) = (1 << isa as u32, 1 << (16 + isa as u32));
    let known = KNOWN.load(Ordering::Relaxed);
    if known & sought != 0 {
        return known & found != 0;
    }
    let is_there = look_for(isa);
    KNOWN.fetch_or(if is_there { sought | found } else { sought }, Ordering::Relaxed);
    is_there
}

fn look_for(isa: Isa) -> bool {
    let bit = |word: u32, bit: u32| word >> bit & 1 == 1;
    if isa == Isa::Sse2 {
        return true;
    }
    // Miri knows neither CPUID nor most of these instructions.
    if cfg!(miri) || __cpuid(0).eax < 7 {
        return false;
    }
    let (one, seven) = (__cpuid(1), __cpuid_count(7, 0));
    // SAFETY: XGETBV exists where OSXSAVE is set.
    let kept = if bit(one.ecx, 27) { unsafe { _xgetbv(0) } } else { 0 };
    let keeps = |mask: u64| kept & mask == mask;
    let vectors_512 = [16, 17, 30, 31].into_iter().all(|b| bit(seven.ebx, b)) && bit(seven.ecx, 11) && keeps(0xE6);
    match isa {
        Isa::Avx2 => bit(seven.ebx, 5) && keeps(0x6),
        Isa::AvxVnni => has(Isa::Avx2) && seven.eax >= 1 && bit(__cpuid_count(7, 1).eax, 4),
        Isa::Avx512Vnni => vectors_512,
        Isa::Amx => vectors_512 && bit(seven.edx, 24) && bit(seven.edx, 25) && keeps(0x60000) && amx::permitted(),
        _ => false,
    }
}
