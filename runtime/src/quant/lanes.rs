//! Arithmetic on sixteen rows at a time: one value for every row of a tile, as vector lanes.

use super::params::TILE_ROWS;

/// Columns per block: their intermediate results stay in the L1 cache.
pub(super) const BLOCK: usize = 64;

/// One value for every row of a tile.
pub(super) type Lane = [f32; TILE_ROWS];

/// `targets += moved · factor`
#[inline(always)]
pub(super) fn add<const N: usize>(targets: &mut [Lane; N], moved: &[Lane; N], factor: f32) {
    for (target, moved) in targets.iter_mut().zip(moved) {
        (0..TILE_ROWS).for_each(|r| target[r] = moved[r].mul_add(factor, target[r]));
    }
}

/// `targets += Σ moved · factor`
#[inline(always)]
pub(super) fn add_all<const N: usize>(targets: &mut [Lane; N], moved: &[[Lane; N]], factors: &[f32]) {
    let mut sum = *targets;
    for (moved, &factor) in moved.iter().zip(factors) {
        add(&mut sum, moved, factor);
    }
    *targets = sum;
}

/// `out = x · H` for the symmetric `h` (`[cols, cols]`).
#[inline(always)]
pub(super) fn times<const N: usize>(x: &[[Lane; N]], h: &[f32], out: &mut [[Lane; N]]) {
    let cols = x.len();
    out.fill([[0.0; TILE_ROWS]; N]);
    for start in (0..cols).step_by(BLOCK) {
        let end = (start + BLOCK).min(cols);
        for (k, out) in out.iter_mut().enumerate() {
            add_all(out, &x[start..end], &h[k * cols + start..k * cols + end]);
        }
    }
}
