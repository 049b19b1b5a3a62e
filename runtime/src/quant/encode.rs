//! Finding the codes of a matrix.
//!
//! Codes are anchored at 4 bits: a group's scale and zero point are those of the best 4-bit codes that a short search
//! finds, under the weights of its inputs if those are known. The 8-bit code is the nearest step of the same lattice,
//! so every lower level is the nearest cell by plain truncation.
//!
//! The search: a few shrinkings of the group's range, each with one step of least squares (fix the codes, solve for
//! scale and offset, recode), a few shifts of the best, and three steps more, which find what a fine grid finds in a
//! hundred. Inner loops are over fixed arrays without branches: conversion is bound by them.

use super::fit::FitSums;
use super::layout::{TILE_ROWS, UNIT_COLS, VECTOR, VECTORS};
use super::{Fits, Level, Nested, PLANES, Shape};
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use half::f16;

/// Ranges tried, as parts of the group's own.
const SHRINKS: [f32; 6] = [1.06, 0.99, 0.93, 0.87, 0.81, 0.74];
/// Shifts tried of the best, in 4-bit cells.
const SHIFTS: [f32; 4] = [-0.3, 0.3, -0.15, 0.15];

/// How hard to look for a group's parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// All ranges and shifts.
    Full,
    /// One range: for uniform codes of another format whose zero lies outside our lattice (`keep`), where any search
    /// ends near the range itself.
    Quick,
}

/// How much the errors of the same parameters at 3 and at 2 bits count beside the one at 4 (they are 4 and 16 times as
/// large by nature). Measured: without, 3 bits are 1.14 of the best 3-bit quantizer and 2 bits 1.26; with more, 4 and 6
/// bits suffer.
const SHARE_3: f32 = 0.12;
const SHARE_2: f32 = 0.025;

/// Rounds of alternating least squares after that. Fewer ranges and rounds clip heavy tails too much for 6 bits
/// (`benches/records/convert.md`).
const REFINEMENTS: usize = 3;

/// Rows between those that enter the least-squares sums of a large matrix: two numbers per level do not need millions
/// of samples.
const FIT_STRIDE: usize = 4;
const FIT_ALL_BELOW: usize = 256;

/// Which level the parameters of a group serve best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// 4 bits, with 3 and 2 in mind: experts, which are read at any level. Weights beyond the best 4-bit range are clipped
    /// at every level, so 8 bits have about 1 % of error.
    Nested,
    /// The highest level alone: dense matrices at 6 or 8 bits, which are never read lower. Nothing is clipped.
    Top,
}

impl Anchor {
    /// The anchor of a matrix that is only ever read at `level`.
    pub fn fixed(level: Level) -> Anchor {
        if level > Level::B4 { Anchor::Top } else { Anchor::Nested }
    }
}

/// A run of encoded rows, tile after tile as the planes have them.
#[derive(Clone, Debug)]
pub struct EncodedRows {
    shape: Shape,
    codes: Vec<Vec<u8>>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
    pub(super) sums: FitSums,
    /// 8-bit codes of the tile in hand, `[16, padded cols]`, and its parameters, `[16, groups]`.
    tile: Vec<u8>,
    params: Vec<(f16, u8)>,
}

impl EncodedRows {
    pub(super) fn new(shape: Shape, rows: usize, max: Level) -> EncodedRows {
        let tiles = rows.div_ceil(TILE_ROWS);
        let params = tiles * shape.groups() * TILE_ROWS;
        EncodedRows {
            shape,
            codes: (0..max.planes()).map(|p| Vec::with_capacity(tiles * shape.tile_bytes(p))).collect(),
            scales: Vec::with_capacity(2 * params),
            zeros: Vec::with_capacity(params),
            sums: FitSums::default(),
            tile: Vec::with_capacity(TILE_ROWS * shape.padded_cols()),
            params: Vec::with_capacity(TILE_ROWS * shape.groups()),
        }
    }

    /// What these rows have in plane `p`.
    pub(crate) fn codes(&self, p: usize) -> &[u8] {
        &self.codes[p]
    }

    /// Scales of these rows' groups.
    pub(crate) fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Zero points of these rows' groups.
    pub(crate) fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// What the corrections of the matrix need of these rows.
    pub(crate) fn sums(&self) -> &FitSums {
        &self.sums
    }

    /// Appends one whole group's codes and parameters: groups in order, row after row.
    #[inline(always)]
    pub(super) fn push_group(&mut self, codes: &[u8], scale: f16, zero: u8) {
        self.tile.extend_from_slice(codes);
        self.params.push((scale, zero));
        if self.params.len() == TILE_ROWS * self.shape.groups() {
            self.pack();
        }
    }

    /// Pads a last, partial tile.
    pub(super) fn finish(mut self) -> EncodedRows {
        if !self.params.is_empty() {
            self.tile.resize(TILE_ROWS * self.shape.padded_cols(), 0);
            self.params.resize(TILE_ROWS * self.shape.groups(), (f16::ZERO, 0));
            self.pack();
        }
        self
    }

    /// The tile in hand, as planes.
    #[inline(always)]
    fn pack(&mut self) {
        let (cols, groups) = (self.shape.padded_cols(), self.shape.groups());
        for unit in (0..cols).step_by(UNIT_COLS) {
            let mut vectors = [[0u8; VECTOR]; VECTORS];
            for row in 0..TILE_ROWS {
                let codes = &self.tile[row * cols + unit..][..UNIT_COLS];
                for (vector, codes) in vectors.iter_mut().zip(codes.chunks_exact(4)) {
                    vector[4 * row..4 * row + 4].copy_from_slice(codes);
                }
            }
            for (p, plane) in self.codes.iter_mut().enumerate() {
                match p {
                    0 => plane.extend_from_slice(&two_bits::<6>(&vectors)),
                    1 => plane.extend_from_slice(&one_bit::<5>(&vectors)),
                    2 => plane.extend_from_slice(&one_bit::<4>(&vectors)),
                    3 => plane.extend_from_slice(&two_bits::<2>(&vectors)),
                    _ => plane.extend_from_slice(&two_bits::<0>(&vectors)),
                }
            }
        }
        for g in 0..groups {
            for row in 0..TILE_ROWS {
                let (scale, zero) = self.params[row * groups + g];
                self.scales.extend_from_slice(&scale.to_le_bytes());
                self.zeros.push(zero);
            }
        }
        self.tile.clear();
        self.params.clear();
    }
}

/// Bits `SHIFT` and `SHIFT + 1` of a unit's codes, as a 2-bit plane has them.
#[inline(always)]
fn two_bits<const SHIFT: u32>(vectors: &[[u8; VECTOR]; VECTORS]) -> [u8; 2 * VECTOR] {
    let mut out = [0; 2 * VECTOR];
    for (j, vector) in vectors.iter().enumerate() {
        for (out, code) in out[VECTOR * (j % 2)..][..VECTOR].iter_mut().zip(vector) {
            *out |= (code >> SHIFT & 3) << (j / 2 * 2);
        }
    }
    out
}

/// Bit `SHIFT` of a unit's codes, as a 1-bit plane has them.
#[inline(always)]
fn one_bit<const SHIFT: u32>(vectors: &[[u8; VECTOR]; VECTORS]) -> [u8; VECTOR] {
    let mut out = [0; VECTOR];
    for (j, vector) in vectors.iter().enumerate() {
        for (out, code) in out.iter_mut().zip(vector) {
            *out |= (code >> SHIFT & 1) << j;
        }
    }
    out
}

/// A matrix in planes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Size.
    pub shape: Shape,
    /// Planes as [`Shape::plane`] lays them out.
    pub planes: Vec<Vec<u8>>,
    /// Corrections per level.
    pub fits: Fits,
    /// Squared error of each level relative to the weights' energy (under the importance, if there was one).
    pub errors: [f32; PLANES],
}

impl Encoded {
    /// Joins runs of rows, in order, that together are the whole matrix.
    ///
    /// # Panics
    /// Where they are not.
    pub fn join(shape: Shape, parts: &[EncodedRows]) -> Encoded {
        let mut sums = FitSums::default();
        parts.iter().for_each(|p| sums.merge(&p.sums));
        let planes = (0..parts[0].codes.len()).map(|p| {
            let layout = shape.plane(p);
            let mut plane = vec![0; layout.len];
            let fill = |plane: &mut [u8], part: &dyn Fn(&EncodedRows) -> &[u8]| {
                let mut at = 0;
                for bytes in parts.iter().map(part) {
                    plane[at..at + bytes.len()].copy_from_slice(bytes);
                    at += bytes.len();
                }
                assert_eq!(at, plane.len(), "the parts are not the whole matrix");
            };
            fill(&mut plane[layout.codes], &|part| &part.codes[p]);
            if p == 0 {
                fill(&mut plane[layout.scales], &|part| &part.scales);
                fill(&mut plane[layout.zeros], &|part| &part.zeros);
            }
            plane
        });
        let (fits, errors) = sums.solve();
        Encoded { shape, planes: planes.collect(), fits, errors }
    }

    /// The matrix as kernels read it.
    ///
    /// # Errors
    /// None for what [`Encoded::join`] made.
    pub fn into_nested(self) -> Result<Nested> {
        Nested::new(self.shape, self.planes.into_iter().map(Bytes::from).collect(), self.fits)
    }
}

/// Encodes a whole matrix (`rows · cols` values) up to level `max`. `importance` (`[cols]`) is E(x²) of the inputs.
///
/// # Errors
/// As [`encode_rows`].
pub fn encode(shape: Shape, weights: &[f32], importance: Option<&[f32]>, max: Level) -> Result<Encoded> {
    Ok(Encoded::join(shape, &[encode_rows(shape, 0, weights, importance, max, Anchor::Nested)?]))
}

/// Encodes the rows from `first_row` on that `weights` holds. Runs of a matrix may be encoded on several threads; all but
/// the last are of whole tiles.
///
/// # Errors
/// `Malformed`, naming the row, for a weight that is no finite number or too large for an f16 scale.
pub fn encode_rows(
    shape: Shape,
    first_row: usize,
    weights: &[f32],
    importance: Option<&[f32]>,
    max: Level,
    anchor: Anchor,
) -> Result<EncodedRows> {
    assert!(weights.len().is_multiple_of(shape.cols) && importance.is_none_or(|v| v.len() == shape.cols));
    // Everything inside is inlined, and so compiled for the best instruction set of the machine; none of it fuses
    // multiplications and additions, so the codes are the same on all.
    best_instructions(
        #[inline(always)]
        || encode_with(shape, first_row, weights, importance, max, anchor),
    )
}

/// Runs `f`, compiled for the best instruction set of the machine as far as it is inlined.
pub(super) fn best_instructions<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Call<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}

#[inline(always)]
fn encode_with(
    shape: Shape,
    first_row: usize,
    weights: &[f32],
    importance: Option<&[f32]>,
    max: Level,
    anchor: Anchor,
) -> Result<EncodedRows> {
    let mut out = EncodedRows::new(shape, weights.len() / shape.cols, max);
    for (i, row) in weights.chunks_exact(shape.cols).enumerate() {
        let row_number = first_row + i;
        let fit = fits_row(shape, row_number);
        for (g, w) in row.chunks(shape.group).enumerate() {
            let importance = importance.map(|v| &v[g * shape.group..][..w.len()]);
            encode_group(row_number, w, importance, (anchor, Effort::Full), fit, &mut out)?;
        }
    }
    Ok(out.finish())
}

/// Finds the codes of one group and appends them.
#[inline(always)]
pub(super) fn encode_group(
    row: usize,
    w: &[f32],
    importance: Option<&[f32]>,
    (anchor, effort): (Anchor, Effort),
    fit: bool,
    out: &mut EncodedRows,
) -> Result<()> {
    let encoded = match out.shape.group {
        32 => encode_padded::<32>(w, importance, (anchor, effort), fit, out),
        _ => encode_padded::<64>(w, importance, (anchor, effort), fit, out),
    };
    encoded.ok_or_else(|| {
        Error::malformed(format!("row {row}"), "a weight is infinite, not a number or beyond 8 million")
    })
}

#[inline(always)]
fn encode_padded<const N: usize>(
    w: &[f32],
    importance: Option<&[f32]>,
    (anchor, effort): (Anchor, Effort),
    fit: bool,
    out: &mut EncodedRows,
) -> Option<()> {
    let group = Group::<N>::new(w, importance)?;
    let (scale, zero) = group.search(anchor, effort);
    group.emit(scale, zero, fit.then_some(importance), out);
    Some(())
}

/// `t` within the 4-bit codes; a comparison each, as registers have it.
#[inline(always)]
fn clamp_code(t: f32) -> f32 {
    let t = if t > 0.0 { t } else { 0.0 };
    if t < 15.0 { t } else { 15.0 }
}

/// Whether a row enters the least-squares sums.
pub(super) fn fits_row(shape: Shape, row: usize) -> bool {
    shape.rows < FIT_ALL_BELOW || row.is_multiple_of(FIT_STRIDE)
}

/// One group of up to `N` weights (32 or 64), padded. `VECTORS` of [`SUMS`] lanes, so that the loops below are over
/// whole registers.
struct Group<const N: usize> {
    len: usize,
    w: [f32; N],
    /// Importance, zero in the padding.
    v: [f32; N],
    /// Whether `v` is one throughout.
    plain: bool,
    /// Σ v and Σ v · w.
    one: f32,
    w1: f32,
}

/// Beyond this the scale of a group would overflow f16.
const MAX_WEIGHT: f32 = 8e6;

/// Sums run in this many lanes, whatever the registers: the codes must not depend on the machine.
const SUMS: usize = 8;

/// Adding this to `0 ≤ x < 2²²` rounds to the nearest integer, which then stands in the lowest bits. Vectorises
/// anywhere, unlike `round`.
const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³

/// `x` rounded to a byte.
#[inline(always)]
fn rounded_byte(x: f32) -> u8 {
    (x + MAGIC).to_bits() as u8
}

/// In pairs: half the latency of adding one after the other.
#[inline(always)]
fn sum(s: [f32; SUMS]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

impl<const N: usize> Group<N> {
    #[inline(always)]
    fn new(w: &[f32], importance: Option<&[f32]>) -> Option<Group<N>> {
        // NaN fails the comparison as well.
        let sound = w.iter().fold(true, |sound, w| sound & (w.abs() <= MAX_WEIGHT));
        let mut group = Group { len: w.len(), w: [0.0; N], v: [0.0; N], plain: false, one: 0.0, w1: 0.0 };
        group.w[..w.len()].copy_from_slice(w);
        match importance {
            // A group without any importance is still encoded, as if all mattered alike.
            Some(v) if v.iter().any(|&v| v > 0.0) => {
                for (to, &v) in group.v.iter_mut().zip(v) {
                    *to = if v.is_finite() { v.max(0.0) } else { 0.0 };
                }
            }
            _ => {
                group.v[..w.len()].fill(1.0);
                group.plain = w.len() == N;
            }
        }
        let (mut one, mut w1) = ([0.0; SUMS], [0.0; SUMS]);
        for (w, v) in group.w.as_chunks::<SUMS>().0.iter().zip(group.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                one[i] += v[i];
                w1[i] += v[i] * w[i];
            }
        }
        (group.one, group.w1) = (sum(one), sum(w1));
        sound.then_some(group)
    }

    /// Scale and zero point.
    #[inline(always)]
    fn search(&self, anchor: Anchor, effort: Effort) -> (f16, u8) {
        let (mut lows, mut highs) = ([0.0f32; SUMS], [0.0f32; SUMS]);
        for w in self.w.as_chunks::<SUMS>().0 {
            for i in 0..SUMS {
                lows[i] = if w[i] < lows[i] { w[i] } else { lows[i] };
                highs[i] = if w[i] > highs[i] { w[i] } else { highs[i] };
            }
        }
        let (lo, hi) = (lows.into_iter().fold(0.0, f32::min), highs.into_iter().fold(0.0, f32::max));
        if hi - lo < 1e-30 {
            return (f16::ZERO, 0);
        }
        if anchor == Anchor::Top {
            let scale = f16::from_f32((hi - lo) / 254.0);
            if scale == f16::ZERO {
                return (f16::ZERO, 0);
            }
            return (scale, (-lo / scale.to_f32()).round().clamp(0.0, 255.0) as u8);
        }
        let (step, low) = if self.plain {
            self.best_4_bits::<true>(lo, hi, effort)
        } else {
            self.best_4_bits::<false>(lo, hi, effort)
        };
        let scale = f16::from_f32(step / 16.0);
        // Tiny groups: below f16's subnormals everything is zero, as it is beside any other weight.
        if scale == f16::ZERO {
            return (f16::ZERO, 0);
        }
        // Code 0 stands for the first cell's lower edge plus half a step of 8 bits.
        let zero = (-low / scale.to_f32() - 0.5).round().clamp(0.0, 255.0) as u8;
        (scale, zero)
    }

    /// The step (one 4-bit cell) and the lower edge of the first cell that serve 4 bits best, with 3 and 2 in mind.
    #[inline(always)]
    fn best_4_bits<const PLAIN: bool>(&self, lo: f32, hi: f32, effort: Effort) -> (f32, f32) {
        let (middle, half) = ((lo + hi) / 2.0, (hi - lo) / 2.0);
        let mut best = (f32::INFINITY, half / 8.0, lo);
        let (shrinks, refinements) = match effort {
            Effort::Full => (&SHRINKS[..], REFINEMENTS),
            Effort::Quick => (&SHRINKS[1..2], 1),
        };
        for &shrink in shrinks {
            // Where least squares leaves the lattice without zero, the range itself is tried.
            let start = (shrink * half / 8.0, middle - shrink * half);
            let (step, low) = self.solve::<PLAIN>(start.0, start.1).unwrap_or(start);
            let error = self.error::<PLAIN>(step, low);
            if error < best.0 {
                best = (error, step, low);
            }
        }
        if effort == Effort::Full {
            for shift in SHIFTS {
                let (step, low) = (best.1, best.2 + shift * best.1);
                let error = self.error::<PLAIN>(step, low);
                if error < best.0 {
                    best = (error, step, low);
                }
            }
        }
        for _ in 0..refinements {
            let Some((step, low)) = self.solve::<PLAIN>(best.1, best.2) else { break };
            let error = self.error::<PLAIN>(step, low);
            if error >= best.0 {
                break;
            }
            best = (error, step, low);
        }
        (best.1, best.2)
    }

    /// Weighted squared error of the 4-bit codes with this step and lower edge, and a share of those at 3 and 2 bits.
    #[inline(always)]
    fn error<const PLAIN: bool>(&self, step: f32, low: f32) -> f32 {
        let inverse = 1.0 / step;
        let offset = -low * inverse - 0.5;
        let mut sums = [0.0f32; SUMS];
        for (w, v) in self.w.as_chunks::<SUMS>().0.iter().zip(self.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                let t = w[i] * inverse + offset;
                let rounded = clamp_code(t) + MAGIC;
                let r = t - (rounded - MAGIC);
                // Cells of 3 and 2 bits are two and four of these; a cell's middle is as far as the cut bits say.
                let bits = rounded.to_bits();
                let r3 = r + ((bits & 1) as i32 as f32 - 0.5);
                let r2 = r + ((bits & 3) as i32 as f32 - 1.5);
                let e = r * r + SHARE_3 * (r3 * r3) + SHARE_2 * (r2 * r2);
                sums[i] += if PLAIN { e } else { v[i] * e };
            }
        }
        sum(sums) * step * step
    }

    /// The step and lower edge that suit the present codes best.
    #[inline(always)]
    fn solve<const PLAIN: bool>(&self, step: f32, low: f32) -> Option<(f32, f32)> {
        let inverse = 1.0 / step;
        let offset = -low * inverse - 0.5;
        let (mut q1, mut qq, mut qw) = ([0.0f32; SUMS], [0.0f32; SUMS], [0.0f32; SUMS]);
        for (w, v) in self.w.as_chunks::<SUMS>().0.iter().zip(self.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                let q = clamp_code(w[i] * inverse + offset) + MAGIC - MAGIC;
                let vq = if PLAIN { q } else { v[i] * q };
                q1[i] += vq;
                qq[i] += vq * q;
                qw[i] += vq * w[i];
            }
        }
        let (one, w1) = (self.one, self.w1);
        let (q1, qq, qw) = (sum(q1), sum(qq), sum(qw));
        let det = one * qq - q1 * q1;
        let step = (one * qw - q1 * w1) / det;
        let centre = (w1 - step * q1) / one;
        let low = centre - 0.5 * step;
        // The zero point must be expressible: the lattice has to contain zero.
        (step.is_finite() && step > 0.0 && low <= 0.0 && low + 16.0 * step >= 0.0).then_some((step, low))
    }

    /// Codes with the final parameters.
    #[inline(always)]
    fn emit(&self, scale: f16, zero: u8, fit: Option<Option<&[f32]>>, out: &mut EncodedRows) {
        let s = scale.to_f32();
        let inverse = if s > 0.0 { 1.0 / s } else { 0.0 };
        let z = f32::from(zero);
        let (mut x, mut codes) = ([0.0f32; N], [0u8; N]);
        for i in 0..N {
            x[i] = self.w[i] * inverse + z;
            codes[i] = rounded_byte(x[i].clamp(0.0, 255.0));
        }
        out.push_group(&codes, scale, zero);
        if let Some(importance) = fit {
            out.sums.add_group(&x[..self.len], &codes[..self.len], zero, s, importance);
        }
    }
}
