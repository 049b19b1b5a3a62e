//! Kimi Linear (arXiv 2510.26692): delta nets with one decay per value of a key, and latent attention without
//! rotation in about every fourth layer. One dense layer first, then small routed experts and a shared one.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "kimi-linear",
    dialects: &[Dialect {
        model_type: "kimi_linear",
        architecture: "kimi-linear",
        sparse: Some(Sparse::SIGMOID),
        latent: true,
        delta: Some(Delta::Channels),
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    renormalize: true,
    latent: true,
    delta: Some(Deltas::Channels { low_rank: true, positive: false }),
    rotates: false,
    ..Family::USUAL
};
