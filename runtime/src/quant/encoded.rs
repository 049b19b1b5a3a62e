//! What encoding a matrix makes: planes, filled tile by tile.
//!
//! Rows come group by group, as codes of 8 bits, whoever found them ([`super::encode`], [`super::keep`]); sixteen rows are a
//! tile, which is cut into planes as [`super::layout`] has them. Runs of rows are made on several threads and joined in
//! order, so that a matrix does not depend on how many there were. Packing is inlined into the loops that fill it.

use super::fit::FitSums;
use super::layout::{UNIT_COLS, VECTOR, VECTORS};
use super::params::TILE_ROWS;
use super::params::{GroupParams, Octave};
use super::{Fits, Level, Nested, PLANES, Shape};
use crate::bytes::Bytes;
use crate::error::Result;

/// Below this, f16 has six bits or fewer for a scale, and the error of a group grows.
const FAINT: f32 = 1.0 / 262_144.0; // 2⁻¹⁸

/// A run of encoded rows, tile after tile as the planes have them.
#[derive(Clone, Debug)]
pub struct EncodedRows {
    shape: Shape,
    codes: Vec<Vec<u8>>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
    pub(super) sums: FitSums,
    /// The largest weight's size, rounded up where codes are kept.
    pub(super) largest: f32,
    /// Whether a group's scale is so small that f16 has only a few bits for it, or none.
    faint: bool,
    /// 8-bit codes of the tile in hand, `[16, padded cols]`, and its parameters, `[16, groups]`.
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

    /// What these rows have in plane `p`.
    pub(crate) fn codes(&self, p: usize) -> &[u8] {
        &self.codes[p]
    }

    /// Scales of these rows' groups: narrow ones in 2 bytes each, as they are kept until [`Octave::stored`].
    pub(crate) fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// Zero points of these rows' groups.
    pub(crate) fn zeros(&self) -> &[u8] {
        &self.zeros
    }

    /// The size of the largest weight.
    pub(crate) fn largest(&self) -> f32 {
        self.largest
    }

    /// Whether scales are too small for f16, so that the matrix should be encoded as a multiple of itself.
    pub(crate) fn faint(&self) -> bool {
        self.faint
    }

    /// What the corrections of the matrix need of these rows.
    pub(crate) fn sums(&self) -> &FitSums {
        &self.sums
    }

    /// Notes the size of a group's largest weight, and whether its scale is too small for f16.
    #[inline(always)]
    pub(super) fn note(&mut self, largest: f32, scale: f32) {
        self.largest = self.largest.max(largest);
        self.faint |= self.shape.params == GroupParams::Wide && scale < FAINT && largest > 0.0;
    }

    /// Appends one whole group's codes and parameters, which are such as the matrix has: groups in order, row after row.
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

    /// The tile in hand, as planes.
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

/// Puts the parts of an array one behind the other.
fn fill<'a>(to: &mut [u8], parts: impl Iterator<Item = &'a [u8]>) {
    let mut at = 0;
    for bytes in parts {
        to[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    assert_eq!(at, to.len(), "the parts are not the whole matrix");
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
    /// None for what [`Encoded::join`] made.
    pub fn into_nested(self) -> Result<Nested> {
        Nested::new(self.shape, self.planes.into_iter().map(Bytes::from).collect(), self.fits)
    }
}
