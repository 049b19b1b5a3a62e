//! Ling 3.0: delta nets with one bounded decay per value of a key, and latent attention with a gate per head.
//! Dense layers first, then small routed experts in groups and a shared one.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "bailingmoe3",
    dialects: &[Dialect {
        model_type: "bailing_hybrid",
        architecture: "bailingmoe3",
        // Earlier models of the same type have another linear attention.
        classes: &["BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"],
        rope_base: 6e6,
        sparse: Some(Sparse::SIGMOID),
        latent: true,
        draft_layers: true,
        delta: Some(Delta::Channels),
        flags: &[("kda_safe_gate", true)],
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    renormalize: true,
    latent: true,
    delta: Some(Deltas::Channels { low_rank: false, positive: true }),
    gated: true,
    ..Family::USUAL
};
