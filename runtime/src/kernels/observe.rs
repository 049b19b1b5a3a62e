//! The port through which calibration observes the inputs of matrices.

use super::Choice;
use crate::quant::Matrix;

/// Sees the inputs of products before they are computed, on the calling thread.
pub trait Observer: Send + Sync {
    /// `rows` of `x` (`[_, matrix.cols()]`) will be multiplied by `matrix`. An expert's gate stands for its up as well:
    /// their inputs are the same. [`Matrix::address`] tells matrices apart.
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>);

    /// What the routed experts of the layer whose router was seen last add to the stream.
    fn summed(&self, sum: &Summed);
}

/// Outputs of a layer's experts, before they are weighed and added up.
pub struct Summed<'a> {
    /// `[tokens · top_k, d]`.
    pub slots: &'a [f32],
    /// `tokens · top_k` of them. A gate of zero is a row that was not computed.
    pub choices: &'a [Choice],
    /// Choices of a token.
    pub top_k: usize,
    /// The stream that they are added to, `[tokens, d]`; `None` if their sum is normed first.
    pub x: Option<&'a [f32]>,
    /// Values of a row.
    pub d: usize,
}
