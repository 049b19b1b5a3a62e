//! SmallThinker (PowerInfer, arXiv 2507.20984): routers that read a layer's input, experts with ReLU, and RoPE in
//! window layers only, or in all if there are no windows.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding, Sparse};
use crate::kernels::{Activation, Score};

pub(super) const FAMILY: Family = Family {
    name: "smallthinker",
    dialects: &[Dialect {
        model_type: "smallthinker",
        architecture: "smallthinker",
        rope_base: 1e6,
        sparse: Some(Sparse { sigmoid: true, biased: Some(false), renormalize: Some(true) }),
        sliding: Some(Sliding { switched: false, listed: true, rhythm: None, on: |_, _| false }),
        activation: "relu",
        aliases: &[
            ("moe_num_primary_experts", "num_experts"),
            ("moe_num_active_primary_experts", "num_experts_per_tok"),
            ("moe_ffn_hidden_size", "moe_intermediate_size"),
            ("sliding_window_size", "sliding_window"),
        ],
        renamed: &[("block_sparse_moe.primary_router", "ffn_gate_inp")],
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 0.0 },
    router_keys: true,
    early_router: true,
    renormalize: true,
    windows: Windows::AllButFirst(4),
    activation: Activation::Reglu,
    rope_in_windows: true,
    rope_without_windows: true,
    ..Family::USUAL
};
