//! Rotation of a matrix's inputs: W x = (W Rᵀ)(R x). A rotated matrix stores W Rᵀ, and is multiplied with R x.
//!
//! R spreads the values of a few columns over all columns. So feedback ([`super::feedback`]) encodes weights without
//! outliers (QuIP#, arXiv 2402.04396). R consists of random signs, and an orthonormal Walsh–Hadamard transform of
//! whole blocks whose width is a power of two. Blocks are mixed by the discrete Hartley transform, whose size is the
//! number of blocks: the odd factor of most widths, so small. Both transforms are symmetric and their own inverses.
//!
//! R depends only on the number of columns, so all matrices with the same input use the same R x. The file stores its
//! number ([`Rotation::KIND`]): another rotation needs another number.

use super::encode::best_instructions;
use std::sync::LazyLock;

/// Values that are processed side by side.
const LANES: usize = 16;

/// The smallest width of a block: a narrower one has too few columns to spread over.
const MIN_BLOCK: usize = 32;

/// The largest width, limited by a GPU's workgroup memory (`shaders/wgsl/rotate.wgsl`).
const MAX_BLOCK: usize = 2048;

/// The most blocks: mixing takes this many multiplications per value.
const MAX_BLOCKS: usize = 64;

/// A rotation of a row's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    block: usize,
    blocks: usize,
}

impl Rotation {
    /// Its number in the file; 0 is no rotation.
    pub const KIND: u8 = 1;

    /// The rotation of `cols` columns; `None` if `cols` has no large factor that is a power of two.
    pub fn of(cols: usize) -> Option<Rotation> {
        let block = 1 << cols.trailing_zeros().min(MAX_BLOCK.trailing_zeros());
        let blocks = cols / block;
        // Created now, so that no token has to wait for it.
        LazyLock::force(&HARTLEY);
        (block >= MIN_BLOCK && (1..=MAX_BLOCKS).contains(&blocks)).then_some(Rotation { block, blocks })
    }

    /// Columns.
    pub fn cols(self) -> usize {
        self.block * self.blocks
    }

    /// Columns of a block.
    #[cfg(feature = "gpu")]
    pub(crate) fn block(self) -> usize {
        self.block
    }

    /// Blocks.
    #[cfg(feature = "gpu")]
    pub(crate) fn blocks(self) -> usize {
        self.blocks
    }

    /// The factor of a value, besides its sign, before blocks are mixed.
    pub(crate) fn norm(self) -> f32 {
        (1.0 / (self.block as f64).sqrt()) as f32
    }

    /// R x, in place. No sum depends on the instruction set for which this is compiled.
    #[inline(always)]
    pub(crate) fn apply(self, x: &mut [f32]) {
        assert_eq!(x.len(), self.cols(), "a row has as many values as the rotation has columns");
        self.signs(x);
        self.mix(x);
        x.chunks_exact_mut(self.block).for_each(hadamard);
    }

    /// Rᵀ x, in place.
    #[inline(always)]
    pub(crate) fn undo(self, x: &mut [f32]) {
        assert_eq!(x.len(), self.cols(), "a row has as many values as the rotation has columns");
        x.chunks_exact_mut(self.block).for_each(hadamard);
        self.mix(x);
        self.signs(x);
    }

    /// R for every row of `rows`, which are rows of a matrix or inputs of one.
    pub fn apply_rows(self, rows: &mut [f32]) {
        best_instructions(
            #[inline(always)]
            || rows.chunks_exact_mut(self.cols()).for_each(|row| self.apply(row)),
        );
    }

    /// Rᵀ for every row of `rows`.
    pub fn undo_rows(self, rows: &mut [f32]) {
        best_instructions(
            #[inline(always)]
            || rows.chunks_exact_mut(self.cols()).for_each(|row| self.undo(row)),
        );
    }

    /// Signs, and the factor that makes the transforms of blocks orthonormal.
    #[inline(always)]
    fn signs(self, x: &mut [f32]) {
        let norm = self.norm();
        for (i, x) in x.iter_mut().enumerate() {
            *x = f32::from_bits((*x * norm).to_bits() ^ sign(i as u32));
        }
    }

    /// The Hartley transform across blocks, for every column.
    #[inline(always)]
    fn mix(self, x: &mut [f32]) {
        let (block, blocks) = (self.block, self.blocks);
        if blocks == 1 {
            return;
        }
        let factors = hartley(blocks);
        let mut parts = [[0.0f32; LANES]; MAX_BLOCKS];
        let parts = &mut parts[..blocks];
        for at in (0..block).step_by(LANES) {
            for (part, x) in parts.iter_mut().zip(x.chunks_exact(block)) {
                part.copy_from_slice(&x[at..at + LANES]);
            }
            for (i, out) in x.chunks_exact_mut(block).enumerate() {
                let (mut sum, mut k) = ([0.0; LANES], 0);
                for part in &*parts {
                    let factor = factors[k];
                    (0..LANES).for_each(|l| sum[l] += factor * part[l]);
                    k = if k + i < blocks { k + i } else { k + i - blocks };
                }
                out[at..at + LANES].copy_from_slice(&sum);
            }
        }
    }
}

/// The sign of a column, as the sign bit of a float. `shaders/wgsl/rotate.wgsl` has the same function.
#[inline(always)]
fn sign(col: u32) -> u32 {
    let mut hash = col.wrapping_add(1).wrapping_mul(0x9E37_79B1);
    hash = (hash ^ hash >> 15).wrapping_mul(0x85EB_CA77);
    (hash ^ hash >> 13) & 1 << 31
}

/// The Walsh–Hadamard transform of a block, not normalised.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    let (parts, _) = x.as_chunks_mut::<LANES>();
    parts.iter_mut().for_each(|part| *part = step::<8>(step::<4>(step::<2>(step::<1>(*part)))));
    let mut half = 1;
    while half < parts.len() {
        for both in parts.chunks_exact_mut(2 * half) {
            let (a, b) = both.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        half *= 2;
    }
}

/// Sums and differences of values at a distance of `HALF`.
#[inline(always)]
fn step<const HALF: usize>(x: [f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|i| if i & HALF == 0 { x[i] + x[i + HALF] } else { x[i - HALF] - x[i] })
}

/// For every number of blocks n, concatenated: (cos + sin)(2πk/n) / √n for every k below n. The transform's
/// factor for the blocks i and j is that of i·j modulo n.
static HARTLEY: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let of = |n: usize| {
        (0..n).map(move |k| {
            let (sin, cos) = (std::f64::consts::TAU * k as f64 / n as f64).sin_cos();
            ((sin + cos) / (n as f64).sqrt()) as f32
        })
    };
    (1..=MAX_BLOCKS).flat_map(of).collect()
});

/// All factors, and the index of the first one for this number of blocks. A GPU gets both.
pub(crate) fn hartley_table(blocks: usize) -> (&'static [f32], usize) {
    (&HARTLEY, blocks * (blocks - 1) / 2)
}

fn hartley(blocks: usize) -> &'static [f32] {
    let (all, at) = hartley_table(blocks);
    &all[at..at + blocks]
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [usize; 9] = [32, 64, 576, 768, 1408, 1536, 2048, 4096, 14336];

    fn values(n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// R in double precision, from the definition in the module's documentation.
    fn spelled_out(x: &[f32], block: usize) -> Vec<f64> {
        let blocks = x.len() / block;
        let norm = ((block * blocks) as f64).sqrt();
        let signed = |i: usize| f64::from(if sign(i as u32) == 0 { x[i] } else { -x[i] });
        let out = |i: usize| -> f64 {
            let term = |j: usize| {
                let (a, b) = (i / block * (j / block) % blocks, (i % block) & (j % block));
                let (sin, cos) = (std::f64::consts::TAU * a as f64 / blocks as f64).sin_cos();
                (sin + cos) * if b.count_ones() % 2 == 0 { 1.0 } else { -1.0 } * signed(j)
            };
            (0..x.len()).map(term).sum::<f64>() / norm
        };
        (0..x.len()).map(out).collect()
    }

    #[test]
    fn a_rotation_is_what_it_is_called() {
        for cols in WIDTHS.into_iter().filter(|&cols| cols <= 2048) {
            let rotation = Rotation::of(cols).unwrap();
            assert_eq!(rotation.cols(), cols);
            let x = values(cols);
            let mut got = x.clone();
            rotation.apply(&mut got);
            let want = spelled_out(&x, rotation.block);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert!((f64::from(*got) - want).abs() < 2e-6, "{got} instead of {want} at {i} of {cols}");
            }
        }
    }

    #[test]
    fn a_rotation_keeps_lengths_and_angles_and_is_undone() {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        for cols in WIDTHS {
            let rotation = Rotation::of(cols).unwrap();
            let all = values(2 * cols);
            let mut turned = all.clone();
            rotation.apply_rows(&mut turned);
            let ((a, b), (turned_a, turned_b)) = (all.split_at(cols), turned.split_at(cols));
            for (want, got) in [
                (dot(a, a), dot(turned_a, turned_a)),
                (dot(a, b), dot(turned_a, turned_b)),
                (dot(b, b), dot(turned_b, turned_b)),
            ] {
                assert!((want - got).abs() < 2e-6 * dot(a, a), "{got} instead of {want}, {cols} columns");
            }
            let largest = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let mut one = vec![0.0; cols];
            one[cols / 3] = 1.0;
            rotation.apply(&mut one);
            let most = 1.5 / (cols as f32).sqrt();
            assert!(largest(&one) < most, "one column of {cols} goes to others as {}", largest(&one));
            rotation.undo_rows(&mut turned);
            for (i, (got, want)) in turned.iter().zip(&all).enumerate() {
                assert!((got - want).abs() < 3e-6, "{got} instead of {want} at {i} of {cols}");
            }
            // Without its signs, R is its own inverse.
            let negate = |x: &mut [f32]| {
                x.iter_mut().enumerate().for_each(|(i, x)| *x = f32::from_bits(x.to_bits() ^ sign(i as u32)));
            };
            let mut twice = a.to_vec();
            for _ in 0..2 {
                negate(&mut twice);
                rotation.apply(&mut twice);
            }
            for (i, (got, want)) in twice.iter().zip(a).enumerate() {
                assert!((got - want).abs() < 3e-6, "{got} instead of {want} at {i} of {cols}, twice");
            }
        }
    }

    #[test]
    fn widths_without_a_large_power_of_two_are_not_rotated() {
        for cols in [0, 1, 16, 48, 100, 32 * 65] {
            assert_eq!(Rotation::of(cols), None, "{cols}");
        }
        let signs = (0..4096).filter(|&i| sign(i) != 0).count();
        assert!((1950..2150).contains(&signs), "{signs} of 4096 signs are negative");
    }
}
