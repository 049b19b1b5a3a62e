//! Error feedback on generated matrices and inputs.

use super::super::{Encoded, Moments, encode};
use super::*;

/// Uniform noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// An approximately Gaussian value.
    fn sum(&mut self) -> f32 {
        (0..4).map(|_| self.next()).sum()
    }
}

/// Weights, and inputs close to a subspace of a quarter of the dimensions, with some large columns.
fn matrix(rows: usize, cols: usize, tokens: usize) -> (Vec<f32>, Vec<f32>) {
    let mut noise = Noise(1);
    let weights = (0..rows * cols).map(|_| 0.02 * noise.sum()).collect();
    let basis: Vec<f32> = (0..cols / 4 * cols).map(|_| noise.sum()).collect();
    let mut inputs = Vec::new();
    for _ in 0..tokens {
        let mut x: Vec<f32> = (0..cols).map(|_| 0.3 * noise.sum()).collect();
        for direction in basis.chunks_exact(cols) {
            let much = noise.sum() / (cols as f32).sqrt();
            x.iter_mut().zip(direction).for_each(|(x, d)| *x += much * d);
        }
        x.iter_mut().step_by(9).for_each(|x| *x *= 3.0);
        inputs.extend(x);
    }
    (weights, inputs)
}

/// Squared error of the products with `inputs`, relative to the products, at every level.
fn errors(encoded: Encoded, weights: &[f32], inputs: &[f32]) -> Vec<f64> {
    let cols = encoded.shape.cols;
    let nested = encoded.into_nested().unwrap();
    let of = |level: Level| {
        let nested = nested.at(level).unwrap();
        let (mut error, mut energy) = (0.0, 0.0);
        let mut row = vec![0.0; cols];
        for (r, w) in weights.chunks_exact(cols).enumerate() {
            nested.dequantize_row(r, &mut row);
            for x in inputs.chunks_exact(cols) {
                let dot =
                    |w: &[f32]| -> f64 { w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum() };
                error += (dot(w) - dot(&row)).powi(2);
                energy += dot(w).powi(2);
            }
        }
        error / energy
    };
    Level::ALL.into_iter().map(of).collect()
}

fn fed_back(shape: Shape, weights: &[f32], inputs: &[f32], sweeps: usize, cuts: &[usize]) -> Encoded {
    let mut moments = Moments::new(shape.cols);
    moments.add(inputs).unwrap();
    let rows: Vec<f32> =
        Feedback::sample(shape.rows).flat_map(|r| weights[r * shape.cols..][..shape.cols].to_vec()).collect();
    let feedback = Feedback::new(Arc::new(Hessian::new(&moments).unwrap()), shape, &rows, sweeps).unwrap();
    let mut from = 0;
    let parts: Vec<EncodedRows> = (cuts.iter().chain([&shape.rows]))
        .map(|&to| {
            let part = &weights[from * shape.cols..to * shape.cols];
            let first = std::mem::replace(&mut from, to);
            feedback.encode_rows(shape, first, part, Level::B8).unwrap()
        })
        .collect();
    Encoded::join(shape, &parts)
}

#[test]
fn errors_of_products_are_less_at_every_level() {
    for group in [32, 64] {
        let shape = Shape::new(32, 192, group).unwrap();
        let (weights, inputs) = matrix(shape.rows, shape.cols, 4096);
        // The error is measured on other inputs than those used for encoding.
        let (seen, judged) = inputs.split_at(3072 * shape.cols);
        let mut energies = vec![0.0; shape.cols];
        for x in seen.chunks_exact(shape.cols) {
            energies.iter_mut().zip(x).for_each(|(e, x)| *e += x * x);
        }
        let rounded = errors(encode(shape, &weights, Some(&energies), Level::B8).unwrap(), &weights, judged);
        let fed = errors(fed_back(shape, &weights, seen, 0, &[]), &weights, judged);
        let swept = errors(fed_back(shape, &weights, seen, 2, &[]), &weights, judged);
        let all =
            format!("groups of {group}: rounded {rounded:?}, fed back {fed:?}, and two sweeps {swept:?}");
        for (i, most) in [0.8, 0.7, 0.75, 0.7, 1.1].into_iter().enumerate() {
            assert!(swept[i] < most * rounded[i], "{} bits, {all}", Level::ALL[i]);
        }
        assert!(fed[2] < 0.9 * rounded[2] && swept[0] < fed[0] && swept[2] < fed[2], "{all}");
    }
}

#[test]
fn the_table_of_errors_is_true_in_the_norm_of_the_inputs() {
    let shape = Shape::new(48, 128, 64).unwrap();
    let (weights, inputs) = matrix(shape.rows, shape.cols, 8192);
    let encoded = fed_back(shape, &weights, &inputs, 1, &[]);
    let said = encoded.errors;
    for (said, seen) in said.into_iter().zip(errors(encoded, &weights, &inputs)) {
        // The table's norm is damped: errors in directions without inputs count a little.
        assert!((0.7..2.0).contains(&(f64::from(said) / seen)), "{said} instead of {seen}");
    }
}

#[test]
fn codes_do_not_depend_on_how_rows_are_cut_and_tails_are_padded() {
    // Rows, columns and blocks all end with a partial tile or group.
    let shape = Shape::new(40, 150, 64).unwrap();
    let (weights, inputs) = matrix(shape.rows, shape.cols, 500);
    let whole = fed_back(shape, &weights, &inputs, 1, &[]);
    let cut = fed_back(shape, &weights, &inputs, 1, &[16, 32]);
    assert_eq!(whole.planes, cut.planes);
    assert!(whole.fits.iter().all(|f| (f.alpha - 1.0).abs() < 0.2), "{:?}", whole.fits);
    let broken: Vec<f32> =
        weights.iter().enumerate().map(|(i, &w)| if i == 17 * 150 { f32::NAN } else { w }).collect();
    let mut moments = Moments::new(150);
    moments.add(&inputs).unwrap();
    let feedback =
        Feedback::new(Arc::new(Hessian::new(&moments).unwrap()), shape, &weights[..150], 1).unwrap();
    let error = feedback.encode_rows(shape, 0, &broken, Level::B8).unwrap_err().to_string();
    assert!(error.contains("row 17"), "{error}");
}
