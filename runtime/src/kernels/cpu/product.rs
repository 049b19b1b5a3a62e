//! Matrix products: many matrices, many tokens, one job for the pool.
//!
//! A [`Product`] says which rows of an input go through a matrix and where the results go. Rows of the matrix are cut
//! into tasks; a task writes the elements of its rows for every token and nothing else.
#![allow(unsafe_code)]

use super::isa::{Isa, Kind};
use super::math;
use super::nested::{Activations, Row, row_times};
use super::pool::Pool;
use crate::quant::{Matrix, Nested};
use std::cell::RefCell;

/// Rows of a matrix that are one task: long enough to hide the claim, short enough to balance.
const TASK_ROWS: usize = 32;

/// Activations that products read: plain, and quantized in the group sizes that the matrices in hand use.
pub(super) struct Input<'a> {
    pub(super) plain: &'a [f32],
    pub(super) by_32: &'a Activations,
    pub(super) by_64: &'a Activations,
}

/// One matrix times some rows of an input.
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    /// Rows of the input.
    pub(super) tokens: &'a [u32],
    pub(super) bias: Option<&'a [f32]>,
    /// Where the result of the n-th token goes: row `to[n]` of the output, or row n.
    pub(super) to: Option<&'a [u32]>,
    pub(super) out: Out,
}

/// An output buffer that several tasks write disjoint elements of.
#[derive(Clone, Copy)]
pub(super) struct Out {
    at: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: tasks write disjoint elements (each its own matrix rows), and whoever made the `Out` keeps the buffer borrowed
// until the pool has returned: `run` takes the buffers' owners by the lifetimes of its callers.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Rows of `stride` values.
    pub(super) fn new(buffer: &mut [f32], stride: usize) -> Out {
        Out { at: buffer.as_mut_ptr(), len: buffer.len(), stride }
    }

    /// # Safety
    /// The buffer is still borrowed for this `Out`, and nobody else touches the element meanwhile.
    unsafe fn set(&self, row: usize, col: usize, value: f32) {
        let i = row * self.stride + col;
        assert!(i < self.len && col < self.stride, "element {col} of row {row} is outside the output");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { *self.at.add(i) = value }
    }
}

thread_local! {
    static ROW: RefCell<Row> = RefCell::default();
}

/// Computes all products.
///
/// # Safety
/// Every `out` is a live, exclusively borrowed buffer, and no two (product, token) pairs write the same row of one.
pub(super) unsafe fn run(pool: &Pool, isa: Isa, input: &Input, products: &[Product]) {
    let tasks = |p: &Product| p.matrix.rows().div_ceil(TASK_ROWS);
    let total = products.iter().map(tasks).sum();
    pool.run(total, &|mut task| {
        for p in products {
            if task < tasks(p) {
                let rows = task * TASK_ROWS..((task + 1) * TASK_ROWS).min(p.matrix.rows());
                let put = |row: usize, n: usize, value: f32| {
                    let bias = p.bias.map_or(0.0, |b| b[row]);
                    let to = p.to.map_or(n, |to| to[n] as usize);
                    // SAFETY: the caller's promise; this task alone has these rows of the matrix.
                    unsafe { p.out.set(to, row, value + bias) }
                };
                match p.matrix {
                    Matrix::F32 { cols, data, .. } => {
                        plain(isa, rows, *cols, data, input.plain, p.tokens, &put)
                    }
                    Matrix::Nested(m) => {
                        let x = if m.shape().group == 32 { input.by_32 } else { input.by_64 };
                        nested(isa, rows, m, x, p.tokens, &put);
                    }
                }
                return;
            }
            task -= tasks(p);
        }
    });
}

fn nested(
    isa: Isa,
    rows: std::ops::Range<usize>,
    m: &Nested,
    x: &Activations,
    tokens: &[u32],
    put: &dyn Fn(usize, usize, f32),
) {
    ROW.with_borrow_mut(|buffer| {
        for row in rows {
            row_times(isa, m, row, x, tokens, buffer, &mut |n, value| put(row, n, value));
        }
    });
}

fn plain(
    isa: Isa,
    rows: std::ops::Range<usize>,
    cols: usize,
    w: &[f32],
    x: &[f32],
    tokens: &[u32],
    put: &dyn Fn(usize, usize, f32),
) {
    isa.run(
        #[inline(always)]
        || match isa.kind() {
            Kind::Scalar => plain_with::<false>(rows, cols, w, x, tokens, put),
            _ => plain_with::<true>(rows, cols, w, x, tokens, put),
        },
    );
}

#[inline(always)]
fn plain_with<const FMA: bool>(
    rows: std::ops::Range<usize>,
    cols: usize,
    w: &[f32],
    x: &[f32],
    tokens: &[u32],
    put: &dyn Fn(usize, usize, f32),
) {
    let x = |n: usize| &x[tokens[n] as usize * cols..][..cols];
    // Four tokens share a pass over a row; the rows of the task stay in cache from one four to the next.
    let mut n = 0;
    while n + 4 <= tokens.len() {
        for row in rows.clone() {
            let sums = math::dot_4::<FMA>(&w[row * cols..][..cols], [x(n), x(n + 1), x(n + 2), x(n + 3)]);
            sums.into_iter().enumerate().for_each(|(i, sum)| put(row, n + i, sum));
        }
        n += 4;
    }
    for n in n..tokens.len() {
        for row in rows.clone() {
            put(row, n, math::dot::<FMA>(&w[row * cols..][..cols], x(n)));
        }
    }
}
