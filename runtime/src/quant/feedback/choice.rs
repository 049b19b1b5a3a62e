//! The choice of one code for all levels, for sixteen rows at a time.

use super::super::lanes::Lane;
use super::super::params::TILE_ROWS;
use super::super::{Fits, Level};

/// The number of levels up to 4 bits: the targets of a matrix that is stored without finer planes.
pub(super) const COARSE: usize = 3;

/// A value of every row at each of the first `N` levels, each of which has its own target.
pub(super) type Targets<const N: usize> = [Lane; N];

/// Weights of the squared errors at 2, 3 and 4 bits.
const WEIGHTS: [f32; 3] = [0.12, 0.5, 1.0];

/// Weights of the squared distances between the targets at 6 and 8 bits and the chosen 4-bit cell: a weight
/// outside the cell is clipped at every finer level.
const OUTSIDE: [f32; 2] = [1.0, 16.0];

/// Chooses a code: the values of the levels' codes, in steps of a group.
pub(super) struct Choice<const N: usize> {
    fits: [(f32, f32); N],
}

/// The distance of `x` from an interval.
#[inline(always)]
fn outside(x: f32, (low, high): (f32, f32)) -> f32 {
    let below = if low > x { low - x } else { 0.0 };
    if x > high { x - high } else { below }
}

/// Takes over the candidate `code` where its error is the least so far.
#[inline(always)]
fn keep_least(least: &mut Lane, best: &mut Lane, error: &Lane, code: impl Fn(usize) -> f32) {
    for r in 0..TILE_ROWS {
        let better = error[r] < least[r];
        least[r] = if better { error[r] } else { least[r] };
        best[r] = if better { code(r) } else { best[r] };
    }
}

impl<const N: usize> Choice<N> {
    pub(super) fn new(fits: &Fits) -> Choice<N> {
        Choice { fits: std::array::from_fn(|b| (fits[b].alpha, fits[b].beta)) }
    }

    /// The codes of 16 rows with the least sum of errors to the wanted values, and their values at every target.
    #[inline(always)]
    pub(super) fn choose(
        &self,
        wanted: &Targets<N>,
        (scale, inverse, zero): (&Lane, &Lane, &Lane),
    ) -> ([u8; TILE_ROWS], Targets<N>) {
        // In 8-bit steps from code 0, so that a code has the same value in all rows.
        let mut x = *wanted;
        for (x, (alpha, beta)) in x.iter_mut().zip(self.fits) {
            (0..TILE_ROWS).for_each(|r| x[r] = x[r] * inverse[r] - beta + alpha * zero[r]);
        }
        let mut first = self.cell(&x);
        let mut last = first.map(|code| code + 15.0);
        if N > COARSE {
            first = self.part(&x, &first);
            last = first.map(|code| code + 3.0);
        }
        let finest = 1.0 / self.fits[N - 1].0;
        let mut codes = [0u8; TILE_ROWS];
        for r in 0..TILE_ROWS {
            codes[r] = (x[N - 1][r] * finest).clamp(first[r], last[r]).round_ties_even() as u8;
        }
        let mut values = [[0.0f32; TILE_ROWS]; N];
        for (b, values) in values.iter_mut().enumerate() {
            let (alpha, beta) = self.fits[b];
            let mask = 0xffu8 << Level::ALL[b].shift();
            for r in 0..TILE_ROWS {
                values[r] = scale[r] * (alpha * (f32::from(codes[r] & mask) - zero[r]) + beta);
            }
        }
        (codes, values)
    }

    /// The first code of the best 4-bit cell, by the errors up to 4 bits and the distances of finer targets.
    #[inline(always)]
    fn cell(&self, x: &Targets<N>) -> Lane {
        let (mut least, mut best) = ([f32::INFINITY; TILE_ROWS], [0.0f32; TILE_ROWS]);
        for cell in 0..16u8 {
            let code = cell << 4;
            let mut error = [0.0f32; TILE_ROWS];
            for b in 0..COARSE {
                let value = self.fits[b].0 * f32::from(code & (0xff << Level::ALL[b].shift()));
                for r in 0..TILE_ROWS {
                    let e = x[b][r] - value;
                    error[r] += WEIGHTS[b] * (e * e);
                }
            }
            for b in COARSE..N {
                let last = f32::from(code + (0x0f & (0xff << Level::ALL[b].shift())));
                let bounds = (
                    if cell == 0 { f32::NEG_INFINITY } else { self.fits[b].0 * f32::from(code) },
                    if cell == 15 { f32::INFINITY } else { self.fits[b].0 * last },
                );
                for r in 0..TILE_ROWS {
                    let e = outside(x[b][r], bounds);
                    error[r] += OUTSIDE[b - COARSE] * (e * e);
                }
            }
            keep_least(&mut least, &mut best, &error, |_| f32::from(code));
        }
        best
    }

    /// The first code of the best 6-bit cell within a 4-bit cell, by the error at 6 bits and the distance of
    /// the 8-bit target.
    #[inline(always)]
    fn part(&self, x: &Targets<N>, first: &Lane) -> Lane {
        let (at_6, at_8) = (self.fits[N - 2].0, self.fits[N - 1].0);
        let (mut least, mut best) = ([f32::INFINITY; TILE_ROWS], *first);
        for part in [0.0f32, 4.0, 8.0, 12.0] {
            let mut error = [0.0f32; TILE_ROWS];
            for r in 0..TILE_ROWS {
                let code = first[r] + part;
                let e = x[N - 2][r] - at_6 * code;
                let beyond = outside(x[N - 1][r], (at_8 * code, at_8 * (code + 3.0)));
                error[r] = e * e + beyond * beyond;
            }
            keep_least(&mut least, &mut best, &error, |r| first[r] + part);
        }
        best
    }
}
