//! Helpers shared by the tests of all backends.

use super::Backend;
use crate::quant::GroupParams;

/// Every kind of group: its size, and how its parameters are stored.
pub(super) const GROUPS: [(usize, GroupParams); 4] =
    [(32, GroupParams::Wide), (64, GroupParams::Wide), (32, GroupParams::Narrow), (64, GroupParams::Narrow)];

/// Deterministic values with a few outliers.
pub(super) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..n).map(|i| (next() + next() + next()) * if i % 97 == 0 { 4.0 } else { 1.0 }).collect()
}

/// A buffer with these values.
pub(super) fn put<B: Backend>(b: &B, x: &[f32]) -> B::Buf {
    let mut buf = b.alloc(x.len()).unwrap();
    b.upload(&mut buf, 0, x);
    buf
}
