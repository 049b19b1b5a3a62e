//! Ling 3.0: delta nets whose memory fades channel by channel, with a bound, and latent attention with a gate per head.
//! Dense layers first, then small routed experts in groups and a shared one.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "bailingmoe3",
    dialects: &[Dialect {
        model_type: "bailing_hybrid",
        architecture: "bailingmoe3",
        // Earlier models of the same type have other linear attention.
        classes: &["BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"],
        rope_base: 6e6,
        sparse: Some(Sparse::SIGMOID),
        latent: true,
        draft_layers: true,
        delta: Some(Delta::Channels),
        // Published configurations use either name.
        aliases: &[
            ("max_position_embeddings", "model_max_length"),
            ("n_group", "num_expert_group"),
            ("n_shared_experts", "num_shared_experts"),
            ("norm_topk_prob", "moe_renormalize"),
            ("num_experts_per_tok", "num_experts_per_token"),
            ("num_local_experts", "num_experts"),
            ("scoring_func", "score_function"),
        ],
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
