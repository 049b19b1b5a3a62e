//! The second moments of a matrix's inputs, H = E(x xᵀ). In the norm of H, an error of the weights is an
//! error of the product. Also the factor of H⁻¹ with which error feedback ([`super::feedback`]) propagates an
//! error to weights that are encoded later (GPTQ, arXiv 2210.17323).

use super::encode::best_instructions;
use crate::error::{Error, Result};

/// The part of the mean of H's diagonal that is always added to the diagonal. It keeps codes from fitting the
/// measured text too closely.
const DAMPING: f64 = 0.1;

/// Tokens as which a flat spectrum counts, besides the measured ones. Second moments of few tokens have
/// directions without inputs, into which feedback would move every error.
const PRIOR_TOKENS: f64 = 256.0;

/// Lanes of a sum: codes must not depend on the machine's registers.
const LANES: usize = 16;

/// Columns whose products with 16 others are summed at a time.
const ROWS: usize = 4;

/// Tokens that are added at a time: their columns stay in the L2 cache.
const CHUNK: usize = 64;

/// Σ x xᵀ of the inputs so far.
#[derive(Clone, Debug)]
pub struct Moments {
    cols: usize,
    /// `[padded, padded]`: the blocks on the diagonal, and those to its right.
    sums: Vec<f32>,
    tokens: f64,
}

impl Moments {
    /// All zero, for a matrix of `cols` columns.
    pub fn new(cols: usize) -> Moments {
        let padded = cols.next_multiple_of(LANES);
        Moments { cols, sums: vec![0.0; padded * padded], tokens: 0.0 }
    }

    /// Adds rows of inputs, `[_, cols]`.
    ///
    /// # Errors
    /// `Malformed` for an input that is not finite.
    pub fn add(&mut self, rows: &[f32]) -> Result<()> {
        if !rows.iter().all(|x| x.is_finite()) {
            return Err(Error::malformed("inputs of a matrix", "a value is infinite or not a number"));
        }
        let (cols, padded) = (self.cols, self.cols.next_multiple_of(LANES));
        let mut panel = vec![0.0f32; CHUNK * padded];
        best_instructions(
            #[inline(always)]
            || {
                for chunk in rows.chunks(CHUNK * cols) {
                    let n = chunk.len() / cols;
                    // Blocks of 16 columns, each token after token.
                    for (t, row) in chunk.chunks_exact(cols).enumerate() {
                        for (block, x) in row.chunks(LANES).enumerate() {
                            panel[(block * CHUNK + t) * LANES..][..x.len()].copy_from_slice(x);
                        }
                    }
                    for i in (0..padded).step_by(ROWS) {
                        let mine = &panel[i / LANES * CHUNK * LANES + i % LANES..];
                        for block in i / LANES..padded / LANES {
                            let theirs = &panel[block * CHUNK * LANES..][..n * LANES];
                            let mut acc = [[0.0f32; LANES]; ROWS];
                            for (t, x) in theirs.as_chunks::<LANES>().0.iter().enumerate() {
                                let a: &[f32; ROWS] =
                                    mine[t * LANES..].first_chunk().expect("a block has 16 columns");
                                for (acc, a) in acc.iter_mut().zip(a) {
                                    (0..LANES).for_each(|l| acc[l] = a.mul_add(x[l], acc[l]));
                                }
                            }
                            for (r, acc) in acc.iter().enumerate() {
                                let out = &mut self.sums[(i + r) * padded + block * LANES..][..LANES];
                                (0..LANES).for_each(|l| out[l] += acc[l]);
                            }
                        }
                    }
                    self.tokens += n as f64;
                }
            },
        );
        Ok(())
    }

    /// The number of rows added.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }
}

/// The damped second moments of a matrix's inputs, and values derived from them.
#[derive(Clone, Debug)]
pub struct Hessian {
    cols: usize,
    /// `[cols, cols]`; the mean of its diagonal is 1 before damping.
    pub(super) h: Vec<f32>,
    /// Uᵀ with H⁻¹ = Uᵀ U, lower triangular, `[cols, cols]`.
    pub(super) ut: Vec<f32>,
    /// The diagonal before damping, as weights of least squares within a group.
    pub(super) importance: Vec<f32>,
}

impl Hessian {
    /// # Errors
    /// `Invalid` if the moments have no such factor, which damping rules out for sums of finite inputs.
    pub fn new(moments: &Moments) -> Result<Hessian> {
        let (n, padded, tokens) = (moments.cols, moments.cols.next_multiple_of(LANES), moments.tokens);
        let trace: f64 = (0..n).map(|i| f64::from(moments.sums[i * padded + i])).sum();
        // Without inputs other than zero, all columns are treated alike.
        let scale = if trace > 0.0 { n as f64 / trace } else { 0.0 };
        let prior = PRIOR_TOKENS / (tokens + PRIOR_TOKENS);
        let (own, even) = ((scale * (1.0 - prior)) as f32, prior as f32);
        let mut h = vec![0.0f32; n * n];
        for i in 0..n {
            for j in i..n {
                let moment = own * moments.sums[i * padded + j];
                (h[i * n + j], h[j * n + i]) = (moment, moment);
            }
        }
        let importance: Vec<f32> = (0..n).map(|i| h[i * n + i] + even).collect();
        for (i, v) in importance.iter().enumerate() {
            h[i * n + i] = v + DAMPING as f32;
        }
        let ut =
            inverse_factor(&h, n).ok_or_else(|| Error::Invalid("moments of inputs are degenerate".into()))?;
        Ok(Hessian { cols: n, h, ut, importance })
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Uᵀ for the symmetric positive `h`, where h⁻¹ = Uᵀ U and U is upper triangular.
///
/// With the order of columns reversed, h = L Lᵀ. L with its order reversed is an upper factor U′ with h = U′
/// U′ᵀ, and U = U′⁻¹, which is L⁻¹ with its order reversed.
fn inverse_factor(h: &[f32], n: usize) -> Option<Vec<f32>> {
    best_instructions(
        #[inline(always)]
        || {
            let mut l = vec![0.0f32; n * n];
            for i in 0..n {
                let (done, rest) = l.split_at_mut(i * n);
                let row = &mut rest[..n];
                for j in 0..=i {
                    let a = h[(n - 1 - i) * n + (n - 1 - j)];
                    if j < i {
                        let other = &done[j * n..][..n];
                        row[j] = (a - dot(&row[..j], &other[..j])) / other[j];
                    } else {
                        let left = a - dot(&row[..j], &row[..j]);
                        if !(left > 0.0 && left.is_finite()) {
                            return None;
                        }
                        row[j] = left.sqrt();
                    }
                }
            }
            // L⁻¹, row after row, in place: row i needs the rows above, and its own row of L.
            let mut own = vec![0.0f32; n];
            for i in 0..n {
                let (done, rest) = l.split_at_mut(i * n);
                let row = &mut rest[..n];
                own[..i].copy_from_slice(&row[..i]);
                let inverse = 1.0 / row[i];
                row[..i].fill(0.0);
                for (k, &factor) in own[..i].iter().enumerate() {
                    let factor = -factor * inverse;
                    let above = &done[k * n..][..=k];
                    row.iter_mut().zip(above).for_each(|(x, &a)| *x = factor.mul_add(a, *x));
                }
                row[i] = inverse;
            }
            // Uᵀ[k][j] = L⁻¹[n−1−j][n−1−k].
            let mut ut = vec![0.0f32; n * n];
            for k in 0..n {
                for j in 0..=k {
                    ut[k * n + j] = l[(n - 1 - j) * n + (n - 1 - k)];
                }
            }
            Some(ut)
        },
    )
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        (0..LANES).for_each(|l| acc[l] = a[l].mul_add(b[l], acc[l]));
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    acc.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Inputs with dependent columns.
    fn rows(n: usize, cols: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut rows = Vec::new();
        for _ in 0..n {
            let common = next();
            rows.extend((0..cols).map(|c| common + (1.0 + c as f32 / 9.0) * next()));
        }
        rows
    }

    #[test]
    fn moments_and_factor_are_what_they_are_called() {
        for cols in [1, 16, 37, 96] {
            let rows = rows(200, cols);
            let mut moments = Moments::new(cols);
            rows.chunks(70 * cols).for_each(|part| moments.add(part).unwrap());
            assert_eq!(moments.tokens(), 200.0);
            let hessian = Hessian::new(&moments).unwrap();
            let (h, ut) = (&hessian.h, &hessian.ut);
            // Compared with sums in double precision.
            let sum = |i: usize, j: usize| -> f64 {
                rows.chunks_exact(cols).map(|x| f64::from(x[i]) * f64::from(x[j])).sum()
            };
            let mean = (0..cols).map(|i| sum(i, i)).sum::<f64>() / cols as f64;
            let prior = PRIOR_TOKENS / (200.0 + PRIOR_TOKENS);
            for i in 0..cols {
                for j in 0..cols {
                    let diagonal = if i == j { prior + DAMPING } else { 0.0 };
                    let want = (1.0 - prior) * sum(i, j) / mean + diagonal;
                    assert!((f64::from(h[i * cols + j]) - want).abs() < 1e-5, "{i}, {j} of {cols}");
                }
            }
            // Uᵀ U · H is the identity.
            for i in 0..cols {
                for j in 0..cols {
                    let inverse = |j: usize| -> f64 {
                        (0..cols).map(|k| f64::from(ut[i * cols + k]) * f64::from(ut[j * cols + k])).sum()
                    };
                    let product: f64 = (0..cols).map(|k| inverse(k) * f64::from(h[k * cols + j])).sum();
                    let want = f64::from(u8::from(i == j));
                    assert!((product - want).abs() < 1e-3, "{product} at {i}, {j} of {cols}");
                }
                assert!(ut[i * cols..][i + 1..cols].iter().all(|&u| u == 0.0));
            }
        }
    }

    #[test]
    fn without_inputs_all_columns_are_alike() {
        let hessian = Hessian::new(&Moments::new(8)).unwrap();
        assert!(hessian.importance.iter().all(|&v| v == 1.0));
        assert!(Moments::new(2).add(&[1.0, f32::NAN]).is_err());
    }
}
