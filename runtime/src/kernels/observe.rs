//! The port through which calibration observes the inputs of matrices.

use crate::quant::Matrix;

/// Sees the inputs of products before they are computed, on the calling thread.
pub trait Observer: Send + Sync {
    /// `rows` of `x` (`[_, matrix.cols()]`) will be multiplied by `matrix`. An expert's gate stands for its up as well:
    /// their inputs are the same. [`Matrix::address`] tells matrices apart.
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>);
}
