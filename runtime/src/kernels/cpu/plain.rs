//! Products of matrices in single precision: routers, and other matrices that a file stores unquantized.
//!
//! An element's order of summation is the same in every block, so one token gets the same values as many tokens.
#![allow(unsafe_code)]

use super::dispatch::with_lanes;
use super::isa::Isa;
use super::lanes::Lanes;
use super::math;
use crate::quant::TILE_ROWS;

/// Numbers in a register of [`Lanes`].
const WIDTH: usize = 16;

/// Products of up to 16 rows of `cols` weights with the rows `tokens` of `x`: `sums[n][r] = row r · token n`.
pub(super) fn tile_times(
    isa: Isa,
    w: &[f32],
    cols: usize,
    x: &[f32],
    tokens: &[u32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    assert!(w.len().is_multiple_of(cols) && w.len() <= TILE_ROWS * cols && tokens.len() == sums.len());
    with_lanes!(isa, L => isa.run(
        #[inline(always)]
        // SAFETY: an `Isa` of a kind exists only on machines with its instructions.
        || unsafe { rows::<L>(w, cols, x, tokens, sums) },
    ));
}

/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn rows<L: Lanes>(w: &[f32], cols: usize, x: &[f32], tokens: &[u32], sums: &mut [[f32; TILE_ROWS]]) {
    let x = |n: u32| &x[n as usize * cols..][..cols];
    let (fours, rest) = tokens.as_chunks::<4>();
    let (sum_fours, sum_rest) = sums.as_chunks_mut::<4>();
    // SAFETY: the caller guarantees it.
    unsafe {
        for (t, sums) in fours.iter().zip(sum_fours) {
            block::<L, 4>(w, cols, t.map(x), sums);
        }
        for (&t, sums) in rest.iter().zip(sum_rest) {
            block::<L, 1>(w, cols, [x(t)], std::array::from_mut(sums));
        }
    }
}

/// All rows times T tokens, with as many rows at a time as have room for their sums in registers.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn block<L: Lanes, const T: usize>(
    w: &[f32],
    cols: usize,
    x: [&[f32]; T],
    sums: &mut [[f32; TILE_ROWS]; T],
) {
    let (mut row, rows) = (0, w.len() / cols);
    while row < rows {
        let w = &w[row * cols..];
        // SAFETY: the caller guarantees it.
        unsafe {
            row += match rows - row {
                4.. if L::MANY => some::<L, 4, T>(w, cols, x, row, sums),
                _ => some::<L, 1, T>(w, cols, x, row, sums),
            };
        }
    }
}

/// R rows, from the first of `w` on, times T tokens. Returns R.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn some<L: Lanes, const R: usize, const T: usize>(
    w: &[f32],
    cols: usize,
    x: [&[f32]; T],
    row: usize,
    sums: &mut [[f32; TILE_ROWS]; T],
) -> usize {
    let w: [&[f32]; R] = std::array::from_fn(|r| &w[r * cols..][..cols]);
    let x = x.map(|x| &x[..cols]);
    // SAFETY: the caller guarantees it; every load is within a row, or within a padded copy.
    unsafe {
        let mut total = [[L::splat(0.0); T]; R];
        let whole = cols / WIDTH * WIDTH;
        for at in (0..whole).step_by(WIDTH) {
            add::<L, R, T>(w.map(|w| w.as_ptr().add(at)), x.map(|x| x.as_ptr().add(at)), &mut total);
        }
        if whole < cols {
            let (w, x) = (w.map(|w| padded(&w[whole..])), x.map(|x| padded(&x[whole..])));
            add::<L, R, T>(w.each_ref().map(|w| w.as_ptr()), x.each_ref().map(|x| x.as_ptr()), &mut total);
        }
        for (r, total) in total.into_iter().enumerate() {
            for (total, sums) in total.into_iter().zip(&mut *sums) {
                let mut lanes = [0.0; WIDTH];
                total.store(lanes.as_mut_ptr());
                sums[row + r] = math::fold(lanes);
            }
        }
    }
    R
}

/// Adds the products of one register each.
///
/// # Safety
/// As [`rows`]; all pointers are valid for a register.
#[inline(always)]
unsafe fn add<L: Lanes, const R: usize, const T: usize>(
    w: [*const f32; R],
    x: [*const f32; T],
    total: &mut [[L; T]; R],
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        let mut columns = [L::splat(0.0); T];
        for (column, x) in columns.iter_mut().zip(x) {
            *column = L::load(x);
        }
        for (w, total) in w.into_iter().zip(total) {
            let w = L::load(w);
            for (column, total) in columns.into_iter().zip(total) {
                *total = w.times_plus(column, *total);
            }
        }
    }
}

/// The end of a row, padded with zeros.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; WIDTH] {
    let mut out = [0.0; WIDTH];
    out[..x.len()].copy_from_slice(x);
    out
}
