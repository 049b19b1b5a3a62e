//! Bit-nested weights: one code of up to 8 bits per weight, stored as planes. Any prefix of the planes is a
//! complete matrix at a lower precision.
//!
//! This module owns the codec: the meaning of the bits ([`layout`], [`decode`]), the search for codes ([`encode`]),
//! and the matrix types that kernels read. The scalar code here is the specification; `kernels` must agree with it.
//!
//! # The code
//! A matrix `[rows, cols]` is divided along its columns (the input dimension) into groups of 32 or 64 weights; a
//! last partial group is padded. Every weight has an 8-bit code; level `b` uses its top `b` bits `t`. A group has
//! one scale `s` (f16) and one zero point `z` (u8, in steps of the 8-bit code), and a matrix has one pair
//! `(alpha, beta)` per level:
//!
//! ```text
//! w_b = s · (alpha_b · ((t << (8 − b)) − z) + beta_b)
//! ```
//!
//! `beta_b` is close to the middle of the truncated cell (half of `2^(8−b)`), `alpha_b` to 1; both are fitted by
//! least squares. All other terms are integers, so a group's dot product with 8-bit activations `q` consists of
//! `dot(t, q)` and `sum(q)` at every level. Narrow parameters ([`GroupParams`]) are a minifloat `s` and one of
//! sixteen `z`, in half the bytes.
//!
//! If the source's codes index a table, they are kept ([`table`]): an entry of the level's table replaces
//! `t << (8 − b)`, and there are at most 4 bits.
//!
//! A matrix may be stored for rotated inputs ([`Rotation`]): then all of this applies to W Rᵀ and R x.

mod decode;
mod encode;
mod encoded;
mod feedback;
mod fit;
mod hessian;
mod keep;
mod lanes;
mod layout;
mod params;
mod rotation;
mod search;
mod table;
mod tile;

/// Tests of kernels create matrices from a source type's codes.
#[cfg(test)]
pub(crate) use crate::format::GgmlType;
pub use decode::{QuantizedRow, cell_middle};
pub use encode::{encode, encode_rows};
pub use encoded::{Encoded, EncodedRows};
pub use feedback::Feedback;
pub(crate) use fit::FitSums;
pub use hessian::{Hessian, Moments};
pub use keep::{keep_rows, kept};
pub use layout::{PLANE_BITS, PLANES, PlaneLayout, Shape, UNIT_COLS, VECTOR, VECTORS, unit_bytes};
pub(crate) use params::Octave;
pub use params::{GroupParams, MXFP4_LEAST, NARROW_BASE, NARROW_STEP, NARROW_ZERO, SHARED, TILE_ROWS};
pub use rotation::Rotation;
#[cfg(feature = "gpu")]
pub(crate) use rotation::hartley_table;
pub use search::Anchor;
pub(crate) use tile::Tile;

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use std::sync::Arc;

/// A precision at which a nested matrix can be read: the number of code bits that are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// 2 bits: plane 0 alone.
    B2 = 2,
    /// 3 bits: planes 0–1.
    B3 = 3,
    /// 4 bits: planes 0–2. Codes are anchored here.
    B4 = 4,
    /// 6 bits: planes 0–3.
    B6 = 6,
    /// 8 bits: all planes.
    B8 = 8,
}

impl Level {
    /// Every level, lowest first; `ALL[p]` is the level that plane `p` completes.
    pub const ALL: [Level; PLANES] = [Level::B2, Level::B3, Level::B4, Level::B6, Level::B8];

    /// The level of `bits` code bits; `None` if there is no such level.
    pub fn from_bits(bits: u8) -> Option<Level> {
        Level::ALL.into_iter().find(|l| l.bits() == bits)
    }

    /// Code bits per weight, without metadata.
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// The number of planes at this level (1–5).
    #[doc(hidden)]
    pub const fn planes(self) -> usize {
        match self {
            Level::B2 => 1,
            Level::B3 => 2,
            Level::B4 => 3,
            Level::B6 => 4,
            Level::B8 => 5,
        }
    }

    /// Position in [`Level::ALL`].
    #[doc(hidden)]
    pub const fn index(self) -> usize {
        self.planes() - 1
    }

    /// The left shift from a code of this level to an 8-bit code: `8 − bits`.
    #[doc(hidden)]
    pub const fn shift(self) -> u32 {
        8 - self.bits() as u32
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.bits())
    }
}

/// # Errors
/// `Invalid` if the file has fewer bits than requested.
pub(crate) fn check_level(level: Level, stored: Level) -> Result<()> {
    if level > stored {
        let what = format!(
            "level {level} was requested, but the experts are stored at up to {stored} bits; convert with a higher --max-level (codes of tables have 4 bits at most)"
        );
        return Err(Error::Invalid(what));
    }
    Ok(())
}

/// The correction of one level of a matrix; see the module's formula.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Fit {
    /// Factor of the centred code.
    pub alpha: f32,
    /// Added in steps of the 8-bit code.
    pub beta: f32,
}

impl Fit {
    /// The correction for weights that were multiplied by 2 to the `lift` before encoding.
    #[must_use]
    pub(crate) fn lowered(self, lift: i32) -> Fit {
        let down = 0.5f32.powi(lift);
        Fit { alpha: self.alpha * down, beta: self.beta * down }
    }

    /// The correction for codes whose scales, if narrow, are stored without this octave.
    #[must_use]
    pub(crate) fn raised(self, params: GroupParams, octave: Octave) -> Fit {
        match params {
            GroupParams::Narrow => self.lowered(-octave.exponent()),
            _ => self,
        }
    }
}

/// The exponent of the power of two by which a matrix with this largest weight is multiplied if its scales
/// are too small for f16. Scales then begin at the top of f16's range, and reach down to 2⁻²⁸ of the largest
/// without loss. At most 2⁶⁰, so that a correction is a normal f32.
pub(crate) fn lift(largest: f32) -> i32 {
    (21 - largest.log2().floor() as i32).clamp(0, 60)
}

/// The corrections of all levels, in the order of [`Level::ALL`].
pub type Fits = [Fit; PLANES];

/// A nested matrix `[rows, cols]` as kernels read it: the planes of one level, in any kind of memory.
#[derive(Clone, Debug)]
pub struct Nested {
    shape: Shape,
    level: Level,
    planes: Vec<Bytes>,
    fits: Fits,
    rotation: Option<Rotation>,
}

impl Nested {
    /// A matrix at the level that `planes` complete.
    ///
    /// # Errors
    /// `Malformed` if a plane is missing or its length differs from [`Shape::plane`], or a fit is not finite.
    pub fn new(shape: Shape, planes: Vec<Bytes>, fits: Fits) -> Result<Nested> {
        match planes.iter().position(|plane| plane.is_empty()) {
            Some(p) => Err(Error::malformed(format!("plane {p}"), "it has no bytes")),
            None => Nested::partly(shape, planes, fits),
        }
    }

    /// [`Nested::new`] for a matrix on a device. Empty planes exist only there ([`Nested::has`]), and no
    /// kernel of the host may read them.
    ///
    /// # Errors
    /// As [`Nested::new`].
    pub fn partly(shape: Shape, planes: Vec<Bytes>, fits: Fits) -> Result<Nested> {
        let level = *planes.len().checked_sub(1).and_then(|last| Level::ALL.get(last)).ok_or_else(|| {
            Error::malformed("planes", format!("{} planes; 1 to {PLANES} make a matrix", planes.len()))
        })?;
        shape.check(level)?;
        for (p, plane) in planes.iter().enumerate() {
            let want = shape.plane(p).len;
            if plane.len() != want && !plane.is_empty() {
                return Err(Error::malformed(
                    format!("plane {p}"),
                    format!("{} bytes where a {shape} matrix has {want}", plane.len()),
                ));
            }
        }
        if !fits.iter().all(|f| f.alpha.is_finite() && f.beta.is_finite()) {
            return Err(Error::malformed("fit", "a correction is not a finite number"));
        }
        Ok(Nested { shape, level, planes, fits, rotation: None })
    }

    /// The same bytes as a matrix whose inputs are rotated.
    ///
    /// # Panics
    /// If the rotation is for another number of columns.
    #[must_use]
    pub fn rotated(self, rotation: Option<Rotation>) -> Nested {
        assert!(rotation.is_none_or(|r| r.cols() == self.shape.cols), "a rotation of {} columns", self.shape);
        Nested { rotation, ..self }
    }

    /// The rotation to apply to inputs before they are quantized and multiplied.
    pub fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// Rows, columns and group size.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The level at which this value is read.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The correction of the level at which this value is read.
    pub fn fit(&self) -> Fit {
        self.fits[self.level.index()]
    }

    /// The same weights read at `level`; `None` if some of its planes are missing (R4: the planes are a prefix).
    pub fn at(&self, level: Level) -> Option<Nested> {
        let planes = self.planes.get(..level.planes())?.to_vec();
        Some(Nested { level, planes, ..*self })
    }

    /// The same matrix with its planes' bytes copied elsewhere.
    ///
    /// # Errors
    /// Errors of `copy`, and as [`Nested::new`].
    pub fn try_map(&self, copy: impl FnMut(&Bytes) -> Result<Bytes>) -> Result<Nested> {
        let planes = self.planes.iter().map(copy).collect::<Result<_>>()?;
        Ok(Nested::new(self.shape, planes, self.fits)?.rotated(self.rotation))
    }

    /// The planes, lowest first.
    pub fn planes(&self) -> &[Bytes] {
        &self.planes
    }

    /// Whether the bytes of plane `p` are on the host.
    pub fn has(&self, p: usize) -> bool {
        self.planes.get(p).is_some_and(|plane| !plane.is_empty())
    }

    /// The codes of plane `p`, tiles one after another; empty above the level.
    pub fn codes(&self, p: usize) -> &[u8] {
        self.planes.get(p).map_or(&[], |plane| &plane[self.shape.plane(p).codes])
    }

    /// The group scales, `[tiles, groups, 16]`: f16 bits in little-endian order (2 bytes each), or narrow ones (1 byte).
    pub fn scales(&self) -> &[u8] {
        &self.planes[0][self.shape.plane(0).scales]
    }

    /// The group zero points, `[tiles, groups, 16]` bytes, or 8 bytes instead of 16 if narrow.
    pub fn zeros(&self) -> &[u8] {
        &self.planes[0][self.shape.plane(0).zeros]
    }
}

/// A weight matrix `[rows, cols]`: `y = W x` for a column `x` of `cols` activations.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// Unquantized, row-major: the reference.
    F32 {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// `rows · cols` values.
        data: Arc<[f32]>,
    },
    /// Bit-nested.
    Nested(Nested),
}

impl Matrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Matrix::F32 { rows, .. } => *rows,
            Matrix::Nested(n) => n.shape.rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Matrix::F32 { cols, .. } => *cols,
            Matrix::Nested(n) => n.shape.cols,
        }
    }

    /// The rotation to apply to inputs; `None` for unquantized matrices.
    pub fn rotation(&self) -> Option<Rotation> {
        match self {
            Matrix::F32 { .. } => None,
            Matrix::Nested(n) => n.rotation,
        }
    }

    /// The address of its values in memory, which identifies a matrix. Clones have the same address.
    pub fn address(&self) -> usize {
        match self {
            Matrix::F32 { data, .. } => data.as_ptr().addr(),
            Matrix::Nested(n) => n.codes(0).as_ptr().addr(),
        }
    }

    /// Bytes that a product with this matrix reads.
    pub fn bytes(&self) -> usize {
        match self {
            Matrix::F32 { data, .. } => data.len() * 4,
            Matrix::Nested(n) => n.planes.iter().map(|p| p.len()).sum(),
        }
    }
}
