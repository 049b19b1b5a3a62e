//! The inner loops of attention: a tile's scores, their weights, and the sums of values. They are generic
//! over the instruction set's registers.

use super::{BLOCK, TILE};
use crate::kernels::cpu::lanes::{Cell, Lanes};
use crate::kernels::cpu::math;
use half::f16;

/// The scores of R rows with a tile's positions, B blocks at a time. Returns R.
#[inline(always)]
pub(super) unsafe fn parts<L: Lanes, T: Cell, const R: usize, const B: usize>(
    q: *const f32,
    k: *const T,
    dim: usize,
    out: *mut f32,
) -> usize {
    for b in (0..TILE / BLOCK).step_by(B) {
        // SAFETY: the caller's precondition.
        unsafe { scores::<L, T, R, B>(q, k.add(b * dim * BLOCK), dim, out.add(b * BLOCK)) }
    }
    R
}

/// `out[r, p] = q[r] · k[p]` for R rows and B blocks of a tile's positions.
#[inline(always)]
unsafe fn scores<L: Lanes, T: Cell, const R: usize, const B: usize>(
    q: *const f32,
    k: *const T,
    dim: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's precondition.
    unsafe {
        let mut sums = [[L::splat(0.0); B]; R];
        for d in 0..dim {
            let mut keys = [L::splat(0.0); B];
            for (b, keys) in keys.iter_mut().enumerate() {
                *keys = L::load(k.add((b * dim + d) * BLOCK));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = L::splat(*q.add(r * dim + d));
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = keys.times_plus(q, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (b, sum) in sums.into_iter().enumerate() {
                sum.store(out.add(r * TILE + b * BLOCK));
            }
        }
    }
}

/// Turns scores into weights relative to the largest score so far; returns the factor that rescales earlier weights.
#[inline(always)]
pub(super) fn weights(scores: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; BLOCK];
    for scores in scores.chunks_exact(BLOCK) {
        for i in 0..BLOCK {
            lanes[i] = if scores[i] > lanes[i] { scores[i] } else { lanes[i] };
        }
    }
    let top = lanes.into_iter().fold(*max, |m, s| if s > m { s } else { m });
    if top == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 1.0;
    }
    let factor = math::exp(*max - top);
    let mut total = [0.0; BLOCK];
    for scores in scores.chunks_exact_mut(BLOCK) {
        for i in 0..BLOCK {
            scores[i] = math::exp(scores[i] - top);
            total[i] += scores[i];
        }
    }
    *max = top;
    *sum = *sum * factor + math::fold(total);
    factor
}

/// `acc[r] += Σ_p w[r, p] · v[p]` for R rows and `n` positions, N vectors of a head at a time. Returns R.
#[inline(always)]
pub(super) unsafe fn mix<L: Lanes, T: Cell, const R: usize, const N: usize>(
    w: *const f32,
    v: *const T,
    dim: usize,
    n: usize,
    acc: *mut f32,
) -> usize {
    // SAFETY: the caller's precondition.
    unsafe {
        let mut d = 0;
        while N > 1 && d + N * BLOCK <= dim {
            mix_part::<L, T, R, N>(w, v.add(d), dim, n, acc.add(d));
            d += N * BLOCK;
        }
        while d + BLOCK <= dim {
            mix_part::<L, T, R, 1>(w, v.add(d), dim, n, acc.add(d));
            d += BLOCK;
        }
        if d < dim {
            // The end of a head whose length is not a multiple of 16: scalar, in one vector of sums.
            for r in 0..R {
                let mut sums = [0.0f32; BLOCK];
                for p in 0..n {
                    let weight = *w.add(r * TILE + p);
                    let at = v.add(p * dim + d);
                    for (i, sum) in sums.iter_mut().enumerate().take(dim - d) {
                        *sum += weight * wide(*at.add(i));
                    }
                }
                for (i, sum) in sums.into_iter().enumerate().take(dim - d) {
                    *acc.add(r * dim + d + i) += sum;
                }
            }
        }
    }
    R
}

fn wide<T: Cell>(x: T) -> f32 {
    // SAFETY: the size distinguishes the two types of cell.
    unsafe {
        if T::HALF {
            std::mem::transmute_copy::<T, f16>(&x).to_f32()
        } else {
            std::mem::transmute_copy::<T, f32>(&x)
        }
    }
}

#[inline(always)]
unsafe fn mix_part<L: Lanes, T: Cell, const R: usize, const N: usize>(
    w: *const f32,
    v: *const T,
    dim: usize,
    n: usize,
    acc: *mut f32,
) {
    // SAFETY: the caller's precondition.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(acc.add(r * dim + i * BLOCK).cast_const());
            }
        }
        for p in 0..n {
            let mut values = [L::splat(0.0); N];
            for (i, values) in values.iter_mut().enumerate() {
                *values = L::load(v.add(p * dim + i * BLOCK));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = L::splat(*w.add(r * TILE + p));
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = values.times_plus(weight, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                sum.store(acc.add(r * dim + i * BLOCK));
            }
        }
    }
}
