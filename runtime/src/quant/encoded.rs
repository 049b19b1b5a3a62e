//! The result of encoding a matrix: planes, filled tile by tile.
//!
//! Rows arrive group by group as 8-bit codes, from [`super::encode`] or [`super::keep`]. Sixteen rows are a tile, which
//! is split into planes in the layout of [`super::layout`]. Several threads encode ranges of rows, which are joined in
//! order, so a matrix does not depend on the number of threads. Packing is inlined into the loops that fill it.

use super::fit::FitSums;
use super::layout::{UNIT_COLS, VECTOR, VECTORS};
use super::params::TILE_ROWS;
use super::params::{GroupParams, Octave};
use super::{Fits, Level, Nested, PLANES, Shape};
use crate::bytes::Bytes;
use crate::error::Result;

/// Below this, f16 has six bits or fewer for a scale, and a group's error increases.
const FAINT: f32 = 1.0 / 262_144.0; // 2⁻¹⁸

/// A range of encoded rows, tile after tile in the layout of planes.
#[derive(Clone, Debug)]
pub struct EncodedRows {
    shape: Shape,
    codes: Vec<Vec<u8>>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
    pub(super) sums: FitSums,
    /// The absolute value of the largest weight; rounded up if codes are kept.
    pub(super) largest: f32,
    /// Whether a group's scale is so small that f16 has few or no bits for it.
    faint: bool,
    /// 8-bit codes of the current tile, `[16, padded cols]`, and its parameters, `[16, groups]`.
    tile: Vec<u8>,
    params: Vec<(f32, u8)>,
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
            largest: 0.0,
            faint: false,
            tile: Vec::with_capacity(TILE_ROWS * shape.padded_cols()),
            params: Vec::with_capacity(TILE_ROWS * shape.groups()),
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The codes of these rows in plane `p`.
    pub(crate) fn codes(&self, p: usize) -> &[u8] {
        &self.codes[p]
    }

    /// Scales of these rows' groups. Narrow ones have 2 bytes each until [`Octave::stored`].
    pub(crate) fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Zero points of these rows' groups.
    pub(crate) fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// The absolute value of the largest weight.
    pub(crate) fn largest(&self) -> f32 {
        self.largest
    }

    /// Whether scales are too small for f16, so that a multiple of the matrix should be encoded instead.
    pub(crate) fn faint(&self) -> bool {
        self.faint
    }

    /// The sums of these rows for the matrix's corrections.
    pub(crate) fn sums(&self) -> &FitSums {
        &self.sums
    }

    /// Records the absolute value of a group's largest weight, and whether its scale is too small for f16.
    #[inline(always)]
    pub(super) fn note(&mut self, largest: f32, scale: f32) {
        self.largest = self.largest.max(largest);
        self.faint |= self.shape.params == GroupParams::Wide && scale < FAINT && largest > 0.0;
    }

    /// Appends one whole group's codes and parameters in the matrix's format. Groups come in order, row after row.
    #[inline(always)]
    pub(super) fn push_group(&mut self, codes: &[u8], scale: f32, zero: u8) {
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
            self.params.resize(TILE_ROWS * self.shape.groups(), (0.0, self.shape.params.no_zero()));
            self.pack();
        }
        self
    }

    /// Appends the current tile to the planes.
    #[inline(always)]
    fn pack(&mut self) {
        let cols = self.shape.padded_cols();
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
        self.shape.params.put(&self.params, &mut self.scales, &mut self.zeros);
        self.tile.clear();
        self.params.clear();
    }
}

/// Concatenates the parts of an array.
fn fill<'a>(to: &mut [u8], parts: impl Iterator<Item = &'a [u8]>) {
    let mut at = 0;
    for bytes in parts {
        to[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    assert_eq!(at, to.len(), "the parts are not the whole matrix");
}

/// Bits `SHIFT` and `SHIFT + 1` of a unit's codes, in the layout of a 2-bit plane.
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

/// Bit `SHIFT` of a unit's codes, in the layout of a 1-bit plane.
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
    /// The size.
    pub shape: Shape,
    /// Planes in the layout of [`Shape::plane`].
    pub planes: Vec<Vec<u8>>,
    /// Corrections per level.
    pub fits: Fits,
    /// Squared error of each level relative to the weights' energy, weighted by the importance if there was one.
    pub errors: [f32; PLANES],
}

impl Encoded {
    /// Joins ranges of rows, in order, that together are the whole matrix.
    ///
    /// # Panics
    /// If they are not the whole matrix.
    pub fn join(shape: Shape, parts: &[EncodedRows]) -> Encoded {
        let mut sums = FitSums::default();
        parts.iter().for_each(|p| sums.merge(&p.sums));
        let octave = match shape.params {
            GroupParams::Narrow => parts.iter().map(|p| Octave::of(&p.scales)).max().unwrap_or_default(),
            _ => Octave::default(),
        };
        let planes = (0..parts[0].codes.len()).map(|p| {
            let layout = shape.plane(p);
            let mut plane = vec![0; layout.len];
            let all = |part: fn(&EncodedRows, usize) -> &[u8]| parts.iter().map(move |rows| part(rows, p));
            fill(&mut plane[layout.codes], all(|rows, p| &rows.codes[p]));
            if p == 0 {
                match shape.params {
                    GroupParams::Narrow => {
                        let stored: Vec<_> = parts.iter().map(|rows| octave.stored(&rows.scales)).collect();
                        fill(&mut plane[layout.scales], stored.iter().map(|scales| &scales[..]));
                    }
                    _ => fill(&mut plane[layout.scales], all(|rows, _| &rows.scales)),
                }
                fill(&mut plane[layout.zeros], all(|rows, _| &rows.zeros));
            }
            plane
        });
        let (fits, errors) = sums.solve(shape.params);
        let fits = fits.map(|fit| fit.raised(shape.params, octave));
        Encoded { shape, planes: planes.collect(), fits, errors }
    }

    /// The matrix as kernels read it.
    ///
    /// # Errors
    /// None for a result of [`Encoded::join`].
    pub fn into_nested(self) -> Result<Nested> {
        Nested::new(self.shape, self.planes.into_iter().map(Bytes::from).collect(), self.fits)
    }
}
