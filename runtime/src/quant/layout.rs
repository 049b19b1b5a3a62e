//! Where the bits of a nested matrix lie. Pure arithmetic; knows nothing of files or kernels.
//!
//! Within a group of `G` weights a 2-bit plane has `G/4` bytes, and byte `j` holds weights `j`, `j + G/4`, `j + G/2`,
//! `j + 3G/4` from its low bits up: four shifts and masks of one vector give four runs of weights in order. A 1-bit
//! plane has `G/8` bytes, bit `i` (little-endian) for weight `i`: on AVX-512 that *is* a mask register. Rows follow one
//! another without padding; every array begins at a multiple of [`ALIGN`] within its plane.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;

/// Bits that each plane adds.
pub const PLANE_BITS: [u8; PLANES] = [2, 1, 1, 2, 2];

/// Number of planes.
pub const PLANES: usize = 5;

/// Alignment of the arrays within a plane, in bytes: a cache line, and an AVX-512 register.
pub const ALIGN: usize = 64;

/// Rows and columns beyond this are refused: no model comes near, and products of sizes stay far from overflow.
const MAX_SIDE: usize = 1 << 24;

/// The size of a nested matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Weights that share a scale and a zero point: 32 or 64.
    pub group: usize,
}

/// The arrays of one plane of one matrix, as byte ranges within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneLayout {
    /// Codes, `rows · groups · group · bits / 8` bytes.
    pub codes: Range<usize>,
    /// f16 scales (plane 0 only).
    pub scales: Range<usize>,
    /// u8 zero points (plane 0 only).
    pub zeros: Range<usize>,
    /// Total length, a multiple of [`ALIGN`].
    pub len: usize,
}

impl Shape {
    /// # Errors
    /// `Malformed` where a side is zero or absurd, or the group is neither 32 nor 64.
    pub fn new(rows: usize, cols: usize, group: usize) -> Result<Shape> {
        if rows == 0 || cols == 0 || rows > MAX_SIDE || cols > MAX_SIDE {
            return Err(Error::malformed(
                "shape",
                format!("{rows} x {cols}: each side must be 1 to {MAX_SIDE}"),
            ));
        }
        if group != 32 && group != 64 {
            return Err(Error::malformed(
                "group",
                format!("{group} weights a group; 32 and 64 are supported"),
            ));
        }
        Ok(Shape { rows, cols, group })
    }

    /// Groups per row; the last may be partial.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Columns rounded up to whole groups: codes exist for all of them.
    pub fn padded_cols(&self) -> usize {
        self.groups() * self.group
    }

    /// Bytes of one row's codes in plane `p`.
    pub fn row_bytes(&self, p: usize) -> usize {
        self.padded_cols() * PLANE_BITS[p] as usize / 8
    }

    /// The arrays of plane `p` (0–4).
    pub fn plane(&self, p: usize) -> PlaneLayout {
        let codes = 0..self.rows * self.row_bytes(p);
        let mut end = codes.end.next_multiple_of(ALIGN);
        let (mut scales, mut zeros) = (end..end, end..end);
        if p == 0 {
            let params = self.rows * self.groups();
            scales = end..end + 2 * params;
            end = scales.end.next_multiple_of(ALIGN);
            zeros = end..end + params;
            end = zeros.end.next_multiple_of(ALIGN);
        }
        PlaneLayout { codes, scales, zeros, len: end }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} (groups of {})", self.rows, self.cols, self.group)
    }
}
