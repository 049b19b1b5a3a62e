//! The layout of a nested matrix's bits. Pure arithmetic, without files or kernels.
//!
//! Rows are divided into *tiles* of 16, the columns of a tile into *units* of 32: 512 codes. They form 8 vectors of
//! 64 bytes, one byte per code; vector `j` has columns `4j .. 4j+4` of every row (byte `4·row + column mod 4`).
//! This suits integer dot products: each 32-bit lane has four neighbouring columns of one row. So a lane's sum
//! belongs to one row, a group's scales are one vector of 16, and nothing is added across lanes.
//!
//! A plane stores its bits of the 8 vectors compactly. A 1-bit plane has 64 bytes per unit: bit `j` of byte `b`
//! belongs to byte `b` of vector `j`. A 2-bit plane has two times 64 bytes, first for the even vectors, then for
//! the odd ones: bits `2f, 2f+1` belong to vector `2f` (or `2f+1`). So whole registers of planes are merged by
//! shifts and selects before they are spread to bytes: three instructions per 64 codes at 4 bits.
//!
//! A tile's units follow one another, then the next tile's; the last tile is padded with rows of zero scale.

use super::Level;
use super::params::{GroupParams, SHARED, TILE_ROWS};
use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;

/// Bits that each plane adds.
pub const PLANE_BITS: [u8; PLANES] = [2, 1, 1, 2, 2];

/// Number of planes.
pub const PLANES: usize = 5;

/// Columns per unit.
pub const UNIT_COLS: usize = 32;

/// Bytes of a unit's vector, and of its part of a 1-bit plane.
pub const VECTOR: usize = 64;

/// Vectors per unit.
pub const VECTORS: usize = 8;

/// Alignment of the arrays within a plane, in bytes: a cache line, and an AVX-512 register.
pub const ALIGN: usize = 64;

/// More rows or columns are rejected: no model comes near, and products of sizes stay far from overflow.
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
    /// How scales and zero points are stored.
    pub params: GroupParams,
}

/// The arrays of one plane of a matrix, as byte ranges within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaneLayout {
    /// Codes, `tiles` times [`Shape::tile_bytes`].
    pub codes: Range<usize>,
    /// Scales (plane 0 only), `[tiles, groups]` times [`GroupParams::scale_bytes`].
    pub scales: Range<usize>,
    /// Zero points (plane 0 only), `[tiles, groups]` times [`GroupParams::zero_bytes`].
    pub zeros: Range<usize>,
    /// Total length, a multiple of [`ALIGN`].
    pub len: usize,
}

impl Shape {
    /// A matrix with wide parameters.
    ///
    /// # Errors
    /// `Malformed` if a side is zero or too large, or the group is neither 32 nor 64.
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
        Ok(Shape { rows, cols, group, params: GroupParams::Wide })
    }

    /// The same matrix with parameters of this format.
    #[must_use]
    pub fn with(self, params: GroupParams) -> Shape {
        Shape { params, ..self }
    }

    /// Checks that codes up to `level` exist. Table codes have at most 4 bits, and groups of 32.
    ///
    /// # Errors
    /// `Malformed` if not.
    pub fn check(&self, level: Level) -> Result<()> {
        if self.params == GroupParams::Iq4Xs && !self.groups().is_multiple_of(SHARED) {
            let what = format!("{} columns, where {SHARED} groups share a scale", self.cols);
            return Err(Error::malformed("params", what));
        }
        if self.params.table().is_some() && (self.group != 32 || level > Level::B4) {
            let what = format!("codes of a table with {level} bits in groups of {}", self.group);
            return Err(Error::malformed("params", format!("{what}; up to 4 in groups of 32 are supported")));
        }
        Ok(())
    }

    /// The number of tiles; the last may be partial.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Groups per row; the last may be partial.
    pub fn groups(&self) -> usize {
        // A power of two, which compilers cannot infer: kernels call this often enough for a division to show.
        (self.cols + self.group - 1) >> self.group.trailing_zeros()
    }

    /// Columns rounded up to whole groups: all of them have codes.
    pub fn padded_cols(&self) -> usize {
        self.groups() * self.group
    }

    /// Bytes of one tile's codes in plane `p`.
    pub fn tile_bytes(&self, p: usize) -> usize {
        self.padded_cols() / UNIT_COLS * unit_bytes(p)
    }

    /// The arrays of plane `p` (0–4).
    pub fn plane(&self, p: usize) -> PlaneLayout {
        let codes = 0..self.tiles() * self.tile_bytes(p);
        let mut end = codes.end.next_multiple_of(ALIGN);
        let (mut scales, mut zeros) = (end..end, end..end);
        if p == 0 {
            let groups = self.tiles() * self.groups();
            scales = end..end + groups * self.params.scale_bytes();
            end = scales.end.next_multiple_of(ALIGN);
            zeros = end..end + groups * self.params.zero_bytes();
            end = zeros.end.next_multiple_of(ALIGN);
        }
        PlaneLayout { codes, scales, zeros, len: end }
    }

    /// The location of a code's bits in plane `p`: the byte, and the lowest bit in it.
    pub fn place(&self, p: usize, row: usize, col: usize) -> (usize, u32) {
        let (vector, lane) = (col % UNIT_COLS / 4, 4 * (row % TILE_ROWS) + col % 4);
        let unit = row / TILE_ROWS * (self.padded_cols() / UNIT_COLS) + col / UNIT_COLS;
        let start = unit * unit_bytes(p) + lane;
        match PLANE_BITS[p] {
            2 => (start + VECTOR * (vector % 2), 2 * (vector as u32 / 2)),
            _ => (start, vector as u32),
        }
    }

    /// The index of a group's scale and zero point, for [`GroupParams::read`].
    pub fn param(&self, row: usize, group: usize) -> usize {
        (row / TILE_ROWS * self.groups() + group) * TILE_ROWS + row % TILE_ROWS
    }
}

/// Bytes of a unit in plane `p`.
pub const fn unit_bytes(p: usize) -> usize {
    VECTOR * PLANE_BITS[p] as usize
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} (groups of {})", self.rows, self.cols, self.group)
    }
}
