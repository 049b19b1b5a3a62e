//! Row-wise operations, split among threads.
#![allow(unsafe_code)]

use super::pool::Pool;
use std::marker::PhantomData;

/// Below this number of values, waking threads costs more than it saves.
const SERIAL_VALUES: usize = 16 * 1024;

/// A buffer of rows that several tasks share.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    at: *mut f32,
    len: usize,
    width: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: it represents an exclusive borrow, and callers of `row` guarantee that no two uses of a row overlap.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// Rows of `width` values.
    pub(super) fn new(buffer: &'a mut [f32], width: usize) -> Rows<'a> {
        Rows { at: buffer.as_mut_ptr(), len: buffer.len(), width, owner: PhantomData }
    }

    /// Row `i`.
    ///
    /// # Safety
    /// No other reference to this row exists at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn row(&self, i: usize) -> &mut [f32] {
        assert!((i + 1) * self.width <= self.len, "row {i} is outside the buffer");
        // SAFETY: in bounds by the assertion; the buffer is borrowed as long as `self`; exclusive by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(i * self.width), self.width) }
    }
}

/// Calls `f(row, values)` for every row of `width` values of `x`.
pub(super) fn each_row(pool: &Pool, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    if x.len() < SERIAL_VALUES {
        return x.chunks_exact_mut(width).enumerate().for_each(|(row, values)| f(row, values));
    }
    let count = x.len() / width;
    let per_task = count.div_ceil(4 * pool.threads()).max(1);
    let rows = Rows::new(x, width);
    pool.run(count.div_ceil(per_task), &|task| {
        for row in task * per_task..((task + 1) * per_task).min(count) {
            // SAFETY: every row belongs to one task.
            f(row, unsafe { rows.row(row) });
        }
    });
}
