//! What processors can be told about cache lines. Hints: where one is not to be had, the values are the same.
#![allow(unsafe_code)]

use crate::quant::TILE_ROWS;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_loadu_ps, _mm_prefetch, _mm_sfence, _mm_stream_ps};

/// A line of values: what a tile's rows make of a token.
type Line = [f32; TILE_ROWS];

/// Asks memory for values that will be read soon.
#[inline(always)]
pub(super) fn ask<T>(x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(size_of::<Line>() / size_of::<T>()) {
        // SAFETY: every x86-64 has the instruction, and may be given any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Writes a line past the caches where it is a whole one of theirs: otherwise it would be read before it is written, and
/// push out what is needed sooner. Other threads see it after [`written`].
///
/// # Safety
/// `to` is valid for writes of a line, and aligned for f32.
#[inline(always)]
pub(super) unsafe fn store_past(to: *mut f32, line: &Line) {
    #[cfg(target_arch = "x86_64")]
    if (to as usize).is_multiple_of(size_of::<Line>()) {
        for (i, four) in line.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the caller's promise; every x86-64 has the instruction, and the address is a multiple of 16.
            unsafe { _mm_stream_ps(to.add(4 * i), _mm_loadu_ps(four.as_ptr())) }
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { to.copy_from_nonoverlapping(line.as_ptr(), line.len()) }
}

/// To be called after [`store_past`] and before another thread is told that values are there: such stores are in no order with
/// others.
#[inline(always)]
pub(super) fn written() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it touches no memory.
    unsafe {
        _mm_sfence();
    }
}
