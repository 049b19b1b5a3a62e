//! Finds the codes of a matrix.
//!
//! Codes are anchored at 4 bits. A group's scale and zero point are those of the best 4-bit codes that a
//! short search finds, weighted by the importance of its inputs if that is known. The 8-bit code is the
//! nearest step of the same lattice, so truncating it gives the nearest cell at every lower level.
//!
//! This file walks through a matrix; `search` finds a group's parameters, `encoded` packs the result.

use super::encoded::{Encoded, EncodedRows};
use super::search::{Anchor, Effort, Group};
use super::{Level, Shape};
use crate::error::{Error, Result};

/// One of this many rows of a large matrix enters the least-squares sums: two numbers per level do not need
/// millions of samples.
const FIT_STRIDE: usize = 4;
const FIT_ALL_BELOW: usize = 256;

/// Encodes a whole matrix (`rows · cols` values) up to level `max`. `importance` (`[cols]`) is E(x²) of the inputs.
///
/// # Errors
/// As [`encode_rows`].
pub fn encode(shape: Shape, weights: &[f32], importance: Option<&[f32]>, max: Level) -> Result<Encoded> {
    Ok(Encoded::join(shape, &[encode_rows(shape, 0, weights, importance, max, Anchor::Nested)?]))
}

/// Encodes the rows in `weights`, which begin at row `first_row`. Several threads may encode ranges of a
/// matrix; all ranges but the last must be whole tiles.
///
/// # Errors
/// `Malformed`, naming the row, for a weight that is not finite, or too large for an f16 scale.
pub fn encode_rows(
    shape: Shape,
    first_row: usize,
    weights: &[f32],
    importance: Option<&[f32]>,
    max: Level,
    anchor: Anchor,
) -> Result<EncodedRows> {
    assert!(weights.len().is_multiple_of(shape.cols) && importance.is_none_or(|v| v.len() == shape.cols));
    // Everything inside is inlined, and so compiled for the machine's best instruction set. No multiplication
    // and addition are fused, so the codes are the same on all machines.
    best_instructions(
        #[inline(always)]
        || {
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
        },
    )
}

/// Runs `f`. What is inlined into `f` is compiled for the machine's best instruction set.
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
    let encoded = match out.shape().group {
        32 => Group::<32>::encode(w, importance, (anchor, effort), fit, out),
        _ => Group::<64>::encode(w, importance, (anchor, effort), fit, out),
    };
    encoded.ok_or_else(|| unsound(row))
}

/// The error for a row with a weight that has no code.
#[cold]
pub(super) fn unsound(row: usize) -> Error {
    Error::malformed(format!("row {row}"), "a weight is infinite, not a number or beyond 8 million")
}

/// Whether a row enters the least-squares sums.
pub(super) fn fits_row(shape: Shape, row: usize) -> bool {
    shape.rows < FIT_ALL_BELOW || row.is_multiple_of(FIT_STRIDE)
}
