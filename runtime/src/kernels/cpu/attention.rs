//! Causal attention, and the splitting of row-wise work among threads.
#![allow(unsafe_code)]

use super::CpuKv;
use super::isa::Isa;
use super::math;
use super::pool::Pool;
use crate::kernels::Attention;
use std::cell::RefCell;

/// Rows shorter than this in all are not worth waking anybody for.
const SERIAL_VALUES: usize = 16 * 1024;

struct Rows(*mut f32);

// SAFETY: tasks make disjoint slices of it only, see `each_row`.
unsafe impl Sync for Rows {}

impl Rows {
    /// A method, so that closures capture the whole and not the bare pointer.
    fn at(&self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// Calls `f(row, values)` for every row of `width` values of `x`.
pub(super) fn each_row(pool: &Pool, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    if x.len() < SERIAL_VALUES {
        return x.chunks_exact_mut(width).enumerate().for_each(|(row, values)| f(row, values));
    }
    let rows = x.len() / width;
    let per_task = rows.div_ceil(4 * pool.threads()).max(1);
    let base = Rows(x.as_mut_ptr());
    pool.run(rows.div_ceil(per_task), &|task| {
        for row in task * per_task..((task + 1) * per_task).min(rows) {
            // SAFETY: rows do not overlap, each belongs to one task, all lie within `x`, and `x` is borrowed for the call.
            let values = unsafe { std::slice::from_raw_parts_mut(base.at(row * width), width) };
            f(row, values);
        }
    });
}

thread_local! {
    /// Scores of the query heads that share a key head, one row of positions each.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out[t, h] = Σ_p softmax_p(q[t, h] · k[p] · scale) v[p]`.
#[allow(clippy::too_many_arguments)]
pub(super) fn attend<const FMA: bool>(
    pool: &Pool,
    isa: Isa,
    q: &[f32],
    kv: &CpuKv,
    pos: usize,
    tokens: usize,
    shape: &Attention,
    out: &mut [f32],
) {
    let &Attention { heads, kv_heads, head_dim, scale, window } = shape;
    let share = heads / kv_heads;
    let width = share * head_dim;
    let base = Rows(out.as_mut_ptr());
    assert!(out.len() >= tokens * heads * head_dim);
    pool.run(tokens * kv_heads, &|task| {
        let (t, kv_head) = (task / kv_heads, task % kv_heads);
        let at = t * heads * head_dim + kv_head * width;
        // SAFETY: (token, key head) pairs own disjoint runs of `out`, which is borrowed for the call and long enough.
        let out = unsafe { std::slice::from_raw_parts_mut(base.at(at), width) };
        let last = pos + t;
        let first = window.map_or(0, |w| (last + 1).saturating_sub(w));
        SCORES.with_borrow_mut(|scores| {
            isa.run(
                #[inline(always)]
                || one::<FMA>(&q[at..at + width], kv, kv_head, first, last, head_dim, scale, scores, out),
            );
        });
    });
}

/// The query heads of one token that share a key head.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn one<const FMA: bool>(
    q: &[f32],
    kv: &CpuKv,
    kv_head: usize,
    first: usize,
    last: usize,
    head_dim: usize,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let n = last + 1 - first;
    let share = q.len() / head_dim;
    let at = |p: usize| (first + p) * kv.width + kv_head * head_dim;
    scores.resize(share * n, 0.0);
    // Positions outside, heads inside: a key is read once for all heads that share it.
    for p in 0..n {
        let key = &kv.k[at(p)..][..head_dim];
        for (h, q) in q.chunks_exact(head_dim).enumerate() {
            scores[h * n + p] = math::dot::<FMA>(q, key) * scale;
        }
    }
    scores.chunks_exact_mut(n).for_each(math::softmax);
    out.fill(0.0);
    for p in 0..n {
        let value = &kv.v[at(p)..][..head_dim];
        for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
            math::axpy::<FMA>(scores[h * n + p], value, out);
        }
    }
}
