//! The port through which somebody sees what matrices are multiplied with: calibration measures through it.

use crate::quant::Matrix;

/// Sees the inputs of products, on the thread that asks for them, before they are computed.
pub trait Observer: Send + Sync {
    /// `rows` of `x` (`[_, matrix.cols()]`) are to be multiplied by `matrix`. An expert's gate stands for its up as well:
    /// their inputs are the same. [`Matrix::address`] tells matrices apart.
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>);
}
