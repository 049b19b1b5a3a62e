//! Cache-line hints. Without hardware support the results are the same.
#![allow(unsafe_code)]

use crate::quant::TILE_ROWS;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_loadu_ps, _mm_prefetch, _mm_sfence, _mm_stream_ps};

/// A cache line of values: one token's products with a tile's rows.
type Line = [f32; TILE_ROWS];

/// Prefetches values that will be read soon.
#[inline(always)]
pub(super) fn ask<T>(x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(size_of::<Line>() / size_of::<T>()) {
        // SAFETY: every x86-64 has the instruction, and it accepts any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Cache lines that are read after the current computation. We prefetch them to the L2 cache a few at a time.
/// All at once they would queue behind each other; in the L1 cache they would evict data in use.
#[cfg(target_arch = "x86_64")]
pub(super) struct Later<const MOST: usize> {
    at: [*const u8; MOST],
    lines: usize,
    next: usize,
    each: usize,
}

#[cfg(target_arch = "x86_64")]
impl<const MOST: usize> Later<MOST> {
    /// No cache lines.
    #[inline(always)]
    pub(super) fn none() -> Self {
        Later { at: [std::ptr::null(); MOST], lines: 0, next: 0, each: 0 }
    }

    /// Takes the cache lines of several byte ranges, as many as fit, and spreads their prefetches over
    /// `calls` calls of [`Later::ask`].
    #[inline(always)]
    pub(super) fn take(&mut self, stretches: impl Iterator<Item = (*const u8, usize)>, calls: usize) {
        (self.lines, self.next) = (0, 0);
        for (from, bytes) in stretches {
            let skew = from.addr() % size_of::<Line>();
            for at in (0..skew + bytes).step_by(size_of::<Line>()) {
                if let Some(line) = self.at.get_mut(self.lines) {
                    *line = from.wrapping_sub(skew).wrapping_add(at);
                    self.lines += 1;
                }
            }
        }
        self.each = self.lines.div_ceil(calls.max(1));
    }

    /// Prefetches the next few lines, in order.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        let some = self.next..self.lines.min(self.next + self.each);
        self.next = some.end;
        for line in &self.at[some] {
            // SAFETY: every x86-64 has the instruction, and it accepts any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
        }
    }
}

/// Writes a line, with non-temporal stores if it is one whole cache line. A normal store would first read the
/// cache line, and evict data that is needed sooner. Other threads see the values after [`written`].
///
/// # Safety
/// `to` is valid for writes of a line, and aligned for f32.
#[inline(always)]
pub(super) unsafe fn store_past(to: *mut f32, line: &Line) {
    #[cfg(target_arch = "x86_64")]
    if (to as usize).is_multiple_of(size_of::<Line>()) {
        for (i, four) in line.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the caller guarantees it; every x86-64 has the instruction; the address is a multiple of 16.
            unsafe { _mm_stream_ps(to.add(4 * i), _mm_loadu_ps(four.as_ptr())) }
        }
        return;
    }
    // SAFETY: the caller guarantees it.
    unsafe { to.copy_from_nonoverlapping(line.as_ptr(), line.len()) }
}

/// Call this after [`store_past`] and before publishing the values to another thread: non-temporal stores are
/// not ordered with other stores.
#[inline(always)]
pub(super) fn written() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it accesses no memory.
    unsafe {
        _mm_sfence();
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn lines_are_asked_for_in_so_many_calls_each_once() {
        let bytes = [0u8; 1000];
        let mut later = Later::<16>::none();
        // At any address, 200 bytes that start at a line's last byte touch five lines.
        let from = bytes.as_ptr().wrapping_add(63 - bytes.as_ptr().addr() % 64);
        later.take([(from, 100), (from.wrapping_add(100), 100)].into_iter(), 4);
        assert_eq!(later.lines, 6, "the line in which one ends and the next begins is named twice");
        assert!(later.at[..6].iter().all(|line| line.addr().is_multiple_of(64)));
        assert_eq!((later.at[0].addr(), later.at[5].addr()), (from.addr() - 63, from.addr() + 193));
        let asked: Vec<usize> = (0..4).map(|_| (later.ask(), later.next).1).collect();
        assert_eq!(asked, [2, 4, 6, 6]);
        later.take([(from, 64 * 100)].into_iter(), 1);
        assert_eq!(later.lines, 16, "what does not fit is not asked for");
    }
}
