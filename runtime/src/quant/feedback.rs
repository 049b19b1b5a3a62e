//! Codes by nested error feedback: weights that are encoded later compensate for the error of a code, at each
//! level separately.
//!
//! We minimize Σ λ_b (Ŵ_b − W) H (Ŵ_b − W)ᵀ over the levels b; one code determines all levels. Every level
//! has its own running target, which begins as W. Column by column we choose the code that is nearest to all
//! targets together, and propagate each level's remaining error to its own target of later columns, by the
//! factor of H⁻¹ (GPTQ, arXiv 2210.17323). Then coordinate descent on the same sum visits all columns again:
//! a clipped weight cannot compensate for others, which feedback detects too late.
//!
//! Sixteen rows (a tile) are processed side by side as vector lanes. Targets are updated in blocks of
//! columns, so that the long updates are products of small matrices from the L1 cache.

mod choice;

use self::choice::{COARSE, Choice, Targets};
use super::encode::{best_instructions, unsound};
use super::encoded::EncodedRows;
use super::fit::{FitSums, Products};
use super::hessian::Hessian;
use super::lanes::{BLOCK, Lane, add, add_all, times};
use super::params::TILE_ROWS;
use super::search::{Shares, params};
use super::{Fits, Level, Shape};
use crate::error::Result;
use std::sync::Arc;

/// Weights of the errors at 3 and 2 bits in the search for a group's parameters. They are larger than without
/// feedback, which finds codes for coarse levels that do not hurt the fine ones.
const SHARES: Shares = Shares { three: 0.5, two: 0.06 };

/// One of this many tiles enters the sums of the corrections, if a matrix has many.
const FIT_TILES: usize = 4;

/// The number of rows from which the first corrections are computed.
const FIRST_ROWS: usize = 64;

/// The parts that all blocks of a matrix share.
#[derive(Clone, Debug)]
pub struct Feedback {
    hessian: Arc<Hessian>,
    fits: Fits,
    sweeps: usize,
}

impl Feedback {
    /// For a matrix of this shape. `rows` (`[_, cols]`) are the first rows of [`Feedback::sample`], or all of
    /// them; `sweeps` is the number of passes of coordinate descent.
    ///
    /// # Errors
    /// `Malformed`, naming the row, for a weight that is not finite, or too large for an f16 scale.
    pub fn new(hessian: Arc<Hessian>, shape: Shape, rows: &[f32], sweeps: usize) -> Result<Feedback> {
        assert!(hessian.cols() == shape.cols && rows.len().is_multiple_of(shape.cols));
        let mut sums = FitSums::default();
        best_instructions(
            #[inline(always)]
            || {
                let mut codes = [0u8; 64];
                let mut x = [0.0f32; 64];
                for (number, row) in Feedback::sample(shape.rows).zip(rows.chunks_exact(shape.cols)) {
                    for (w, v) in row.chunks(shape.group).zip(hessian.importance.chunks(shape.group)) {
                        let (scale, zero, _) = params((shape.group, shape.params), w, v, SHARES)
                            .ok_or_else(|| unsound(number))?;
                        let n = w.len();
                        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                        for i in 0..n {
                            x[i] = w[i] * inverse + f32::from(zero);
                            codes[i] = x[i].clamp(0.0, 255.0).round_ties_even() as u8;
                        }
                        sums.add_group(&x[..n], &codes[..n], zero, scale, Some(v));
                    }
                }
                Ok(())
            },
        )?;
        Ok(Feedback { hessian, fits: sums.solve(shape.params).0, sweeps })
    }

    /// The row numbers for [`Feedback::new`], spread evenly over the `rows` of a matrix.
    pub fn sample(rows: usize) -> impl Iterator<Item = usize> {
        let n = rows.min(FIRST_ROWS);
        (0..n).map(move |i| i * rows / n)
    }

    /// Encodes the rows in `weights`, which begin at row `first_row`, like [`super::encode_rows`].
    ///
    /// # Errors
    /// `Malformed`, naming the row, for a weight that is not finite, or too large for an f16 scale.
    pub fn encode_rows(
        &self,
        shape: Shape,
        first_row: usize,
        weights: &[f32],
        max: Level,
    ) -> Result<EncodedRows> {
        assert!(weights.len().is_multiple_of(shape.cols) && first_row.is_multiple_of(TILE_ROWS));
        best_instructions(
            #[inline(always)]
            || {
                let mut out = EncodedRows::new(shape, weights.len() / shape.cols, max);
                if max <= Level::B4 {
                    self.encode_tiles::<COARSE>(shape, first_row, weights, &mut out)?;
                } else {
                    self.encode_tiles::<{ Level::ALL.len() }>(shape, first_row, weights, &mut out)?;
                }
                Ok(out.finish())
            },
        )
    }

    /// Encodes for the first `N` levels; the finer bits of a code are then those nearest to the weight.
    #[inline(always)]
    fn encode_tiles<const N: usize>(
        &self,
        shape: Shape,
        first_row: usize,
        weights: &[f32],
        out: &mut EncodedRows,
    ) -> Result<()> {
        let mut tile = Tile::<N>::new(self, shape);
        for (i, rows) in weights.chunks(TILE_ROWS * shape.cols).enumerate() {
            let number = first_row / TILE_ROWS + i;
            tile.load(rows, first_row + i * TILE_ROWS, out)?;
            tile.feed_back();
            for sweep in 0..self.sweeps {
                tile.descend(sweep == 0);
            }
            tile.emit(rows.len() / shape.cols, out);
            if shape.tiles() <= FIT_TILES * FIT_TILES || number.is_multiple_of(FIT_TILES) {
                tile.sum(&mut out.sums);
            }
        }
        Ok(())
    }
}

/// Sixteen rows while they are encoded.
struct Tile<'a, const N: usize> {
    with: &'a Feedback,
    shape: Shape,
    /// `[cols]`; missing rows are zero.
    w: Vec<Lane>,
    codes: Vec<[u8; TILE_ROWS]>,
    /// `[groups]`, and their stored bytes, `[16, groups]`.
    scale: Vec<Lane>,
    inverse: Vec<Lane>,
    zero: Vec<Lane>,
    params: Vec<(f32, u8)>,
    /// `[cols]`: running targets, then E·H; the codes' values minus the weights.
    targets: Vec<Targets<N>>,
    errors: Vec<Targets<N>>,
    choice: Choice<N>,
}

impl<'a, const N: usize> Tile<'a, N> {
    fn new(with: &'a Feedback, shape: Shape) -> Tile<'a, N> {
        let (cols, groups) = (shape.cols, shape.groups());
        Tile {
            with,
            shape,
            w: vec![[0.0; TILE_ROWS]; cols],
            codes: vec![[0; TILE_ROWS]; cols],
            scale: vec![[0.0; TILE_ROWS]; groups],
            inverse: vec![[0.0; TILE_ROWS]; groups],
            zero: vec![[0.0; TILE_ROWS]; groups],
            params: vec![(0.0, 0); TILE_ROWS * groups],
            targets: vec![[[0.0; TILE_ROWS]; N]; cols],
            errors: vec![[[0.0; TILE_ROWS]; N]; cols],
            choice: Choice::new(&with.fits),
        }
    }

    /// Loads rows, and finds the parameters of their groups.
    #[inline(always)]
    fn load(&mut self, rows: &[f32], first: usize, out: &mut EncodedRows) -> Result<()> {
        let (cols, group, groups) = (self.shape.cols, self.shape.group, self.shape.groups());
        self.params.fill((0.0, self.shape.params.no_zero()));
        self.w.fill([0.0; TILE_ROWS]);
        for (r, row) in rows.chunks_exact(cols).enumerate() {
            self.w.iter_mut().zip(row).for_each(|(lane, &w)| lane[r] = w);
            for (g, (w, v)) in row.chunks(group).zip(self.with.hessian.importance.chunks(group)).enumerate() {
                let (scale, zero, largest) =
                    params((group, self.shape.params), w, v, SHARES).ok_or_else(|| unsound(first + r))?;
                out.note(largest, scale);
                self.params[r * groups + g] = (scale, zero);
            }
        }
        for g in 0..groups {
            for r in 0..TILE_ROWS {
                let (scale, zero) = self.params[r * groups + g];
                self.scale[g][r] = scale;
                self.inverse[g][r] = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                self.zero[g][r] = f32::from(zero);
            }
        }
        Ok(())
    }

    /// Chooses the codes of all columns, and propagates each error to later columns.
    #[inline(always)]
    fn feed_back(&mut self) {
        let (cols, ut) = (self.shape.cols, &self.with.hessian.ut[..]);
        for (targets, &w) in self.targets.iter_mut().zip(&self.w) {
            *targets = [w; N];
        }
        let mut moved = [[[0.0f32; TILE_ROWS]; N]; BLOCK];
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            for j in start..end {
                let g = j / self.shape.group;
                let at = (&self.scale[g], &self.inverse[g], &self.zero[g]);
                let (code, value) = self.choice.choose(&self.targets[j], at);
                self.codes[j] = code;
                let inverse = 1.0 / ut[j * cols + j];
                let moved = &mut moved[j - start];
                for b in 0..N {
                    for r in 0..TILE_ROWS {
                        moved[b][r] = -(self.targets[j][b][r] - value[b][r]) * inverse;
                        self.errors[j][b][r] = value[b][r] - self.w[j][r];
                    }
                }
                for (k, targets) in self.targets[..end].iter_mut().enumerate().skip(j + 1) {
                    add(targets, moved, ut[k * cols + j]);
                }
            }
            for (k, targets) in self.targets.iter_mut().enumerate().skip(end) {
                add_all(targets, &moved[..end - start], &ut[k * cols + start..k * cols + end]);
            }
        }
    }

    /// One pass over all columns. Each column gets the best code given all others. If `first`, computes E·H.
    #[inline(always)]
    fn descend(&mut self, first: bool) {
        let (cols, h) = (self.shape.cols, &self.with.hessian.h[..]);
        if first {
            times(&self.errors, h, &mut self.targets);
        }
        let mut moved = [[[0.0f32; TILE_ROWS]; N]; BLOCK];
        for start in (0..cols).step_by(BLOCK) {
            let end = (start + BLOCK).min(cols);
            let mut any = false;
            for j in start..end {
                let g = j / self.shape.group;
                let inverse = 1.0 / h[j * cols + j];
                let (w, errors, sums) = (&self.w[j], &self.errors[j], &self.targets[j]);
                let wanted = std::array::from_fn(|b| {
                    std::array::from_fn(|r| w[r] + errors[b][r] - sums[b][r] * inverse)
                });
                let at = (&self.scale[g], &self.inverse[g], &self.zero[g]);
                let (code, value) = self.choice.choose(&wanted, at);
                let moved = &mut moved[j - start];
                if code == self.codes[j] {
                    *moved = [[0.0; TILE_ROWS]; N];
                    continue;
                }
                self.codes[j] = code;
                any = true;
                for b in 0..N {
                    for r in 0..TILE_ROWS {
                        let error = value[b][r] - self.w[j][r];
                        moved[b][r] = error - self.errors[j][b][r];
                        self.errors[j][b][r] = error;
                    }
                }
                for (k, targets) in self.targets[..end].iter_mut().enumerate().skip(start) {
                    add(targets, moved, h[k * cols + j]);
                }
            }
            if any {
                for (k, targets) in
                    self.targets.iter_mut().enumerate().filter(|&(k, _)| k < start || k >= end)
                {
                    add_all(targets, &moved[..end - start], &h[k * cols + start..k * cols + end]);
                }
            }
        }
    }

    /// Appends the codes and parameters of the rows that exist.
    #[inline(always)]
    fn emit(&self, rows: usize, out: &mut EncodedRows) {
        let (group, groups) = (self.shape.group, self.shape.groups());
        let mut codes = [0u8; 64];
        for r in 0..rows {
            for g in 0..groups {
                let (scale, zero) = self.params[r * groups + g];
                // Padding is multiplied by activations that are zero.
                codes.fill(zero);
                let columns = self.codes[g * group..].iter().take(group);
                codes.iter_mut().zip(columns).for_each(|(code, column)| *code = column[r]);
                out.push_group(&codes[..group], scale, zero);
            }
        }
    }

    /// Adds the tile to the sums of the corrections, in the norm of H.
    #[inline(always)]
    fn sum(&self, sums: &mut FitSums) {
        let cols = self.shape.cols;
        let mut of = Products::new(cols);
        for (j, (w, codes)) in self.w.iter().zip(&self.codes).enumerate() {
            let g = j / self.shape.group;
            of.push(w, codes, &self.scale[g], &self.zero[g]);
        }
        sums.add_products(&of, &self.with.hessian.h);
    }
}

#[cfg(test)]
mod tests;
