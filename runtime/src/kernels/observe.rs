//! The interface through which calibration observes the inputs of matrices.

use super::Choice;
use crate::quant::Matrix;

/// Receives the inputs of products before they are computed, on the calling thread.
pub trait Observer: Send + Sync {
    /// `rows` of `x` (`[_, matrix.cols()]`) are about to be multiplied by `matrix`. An expert's up gets no
    /// call of its own, because its inputs are the gate's. [`Matrix::address`] identifies a matrix.
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>);

    /// What the routed experts add to the stream, in the layer of the last router that was observed.
    fn summed(&self, sum: &Summed);
}

/// Outputs of a layer's experts, before weighting and summing.
pub struct Summed<'a> {
    /// `[tokens · top_k, d]`.
    pub slots: &'a [f32],
    /// `tokens · top_k` choices. A gate of zero marks a row that was not computed.
    pub choices: &'a [Choice],
    /// Choices per token.
    pub top_k: usize,
    /// The stream to which the sum is added, `[tokens, d]`; `None` if the sum is normed first.
    pub x: Option<&'a [f32]>,
    /// Values of a row.
    pub d: usize,
}
