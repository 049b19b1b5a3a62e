//! Kimi Linear (arXiv 2510.26692): delta nets whose memory fades channel by channel, and latent attention without
//! rotation in every fourth layer or so. One dense layer first, then small routed experts and a shared one.

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
        // Published configurations use the second names.
        aliases: &[
            ("max_position_embeddings", "model_max_length"),
            ("n_group", "num_expert_group"),
            ("n_shared_experts", "num_shared_experts"),
            ("norm_topk_prob", "moe_renormalize"),
            ("num_experts_per_tok", "num_experts_per_token"),
            ("num_local_experts", "num_experts"),
            ("scoring_func", "moe_router_activation_func"),
        ],
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
