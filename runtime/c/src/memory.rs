//! The caller's memory: what can be checked of a pointer, and slices over it. What C has not written yet counts as any bytes.

use crate::error::pith_error_t::{self, *};
use core::ffi::c_void;

/// Addresses of a piece of memory, to be compared only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    start: usize,
    bytes: usize,
}

impl Span {
    /// The `len` elements from a pointer on, unless that is more than memory can be.
    pub(crate) fn new<T>(start: *const T, len: usize) -> Result<Span, pith_error_t> {
        let (start, bytes) = (start.addr(), len.checked_mul(size_of::<T>()).ok_or(PITH_LENGTH)?);
        let fits = isize::try_from(bytes).is_ok() && start.checked_add(bytes).is_some();
        if fits { Ok(Span { start, bytes }) } else { Err(PITH_LENGTH) }
    }

    /// The object that a pointer points to.
    pub(crate) fn of<T>(object: *const T) -> Span {
        Span { start: object.addr(), bytes: size_of::<T>() }
    }

    fn overlaps(self, other: Span) -> bool {
        let begins_in = |a: Span, b: Span| a.start.wrapping_sub(b.start) < b.bytes;
        self.bytes > 0 && other.bytes > 0 && (begins_in(self, other) || begins_in(other, self))
    }
}

/// Refuses memory of which any two pieces share bytes.
pub(crate) fn check_apart(spans: &[Span]) -> Result<(), pith_error_t> {
    let mut rest = spans;
    while let [first, others @ ..] = rest {
        if others.iter().any(|other| first.overlaps(*other)) {
            return Err(PITH_OVERLAP);
        }
        rest = others;
    }
    Ok(())
}

/// Refuses what no object of this type can be at.
pub(crate) fn check_object<T>(pointer: *const T) -> Result<(), pith_error_t> {
    check(pointer, 1)
}

/// Refuses what no `len` elements can be at.
fn check<T>(start: *const T, len: usize) -> Result<(), pith_error_t> {
    Span::new(start, len)?;
    if start.is_null() {
        return Err(PITH_NULL);
    }
    if !start.is_aligned() {
        return Err(PITH_MISALIGNED);
    }
    Ok(())
}

/// Elements to read; null is good for none of them.
///
/// # Safety
/// Where `start` is not null, `len` elements lie there, and nobody writes to them for `'a`.
pub(crate) unsafe fn read<'a, T>(start: *const T, len: usize) -> Result<&'a [T], pith_error_t> {
    if start.is_null() && len == 0 {
        return Ok(&[]);
    }
    check(start, len)?;
    // SAFETY: not null, aligned, and no longer than memory can be, says `check`; the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(start, len) })
}

/// Elements to write; null is good for none of them.
///
/// # Safety
/// Where `start` is not null, `len` elements lie there, and nobody else uses them for `'a`.
pub(crate) unsafe fn write<'a, T>(start: *mut T, len: usize) -> Result<&'a mut [T], pith_error_t> {
    if start.is_null() && len == 0 {
        return Ok(&mut []);
    }
    check(start, len)?;
    // SAFETY: not null, aligned, and no longer than memory can be, says `check`; the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(start, len) })
}

/// As [`read`], for bytes of which C does not say the type.
///
/// # Safety
/// As of [`read`].
pub(crate) unsafe fn read_bytes<'a>(start: *const c_void, len: usize) -> Result<&'a [u8], pith_error_t> {
    // SAFETY: the caller's promise.
    unsafe { read(start.cast(), len) }
}

/// As [`write`], for bytes of which C does not say the type.
///
/// # Safety
/// As of [`write`].
pub(crate) unsafe fn write_bytes<'a>(start: *mut c_void, len: usize) -> Result<&'a mut [u8], pith_error_t> {
    // SAFETY: the caller's promise.
    unsafe { write(start.cast(), len) }
}
