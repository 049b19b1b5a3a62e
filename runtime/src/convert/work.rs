//! One matrix to encode, and its blocks of rows.

use crate::quant::{self, Anchor, Level, Rotation, Shape};
use std::ops::Range;

/// Weights in the block of rows that one thread encodes at a time. Its f32 scratch and its planes fit in the
/// L2 cache.
const BLOCK_WEIGHTS: usize = 1 << 17;

/// One matrix to encode, and where it goes.
pub(super) struct Work<'a> {
    pub(super) name: &'a str,
    pub(super) expert: usize,
    pub(super) shape: Shape,
    pub(super) level: Level,
    pub(super) anchor: Anchor,
    /// The rotation of its inputs, if any.
    pub(super) rotation: Option<Rotation>,
    /// For every plane: the tensor's index in the file, and the first byte within the tensor.
    pub(super) places: Vec<(usize, u64)>,
}

impl Work<'_> {
    fn rows_per_block(&self) -> usize {
        (BLOCK_WEIGHTS / self.shape.cols).max(1).next_multiple_of(quant::TILE_ROWS)
    }

    pub(super) fn blocks(&self) -> usize {
        self.shape.rows.div_ceil(self.rows_per_block())
    }

    pub(super) fn rows(&self, block: usize) -> Range<usize> {
        let per_block = self.rows_per_block();
        block * per_block..((block + 1) * per_block).min(self.shape.rows)
    }
}
