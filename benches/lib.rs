//! Helpers shared by the benchmarks.

/// Deterministic values in roughly [−1.5, 1.5], bell-shaped.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..n).map(|_| next() + next() + next()).collect()
}

pub mod http;
pub mod served;
