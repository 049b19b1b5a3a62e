//! Qwen3-Next: three gated delta nets (arXiv 2412.06464) per gated attention layer, small experts and one
//! gated shared expert.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect};

/// Defaults of all models with such layers, which configurations may leave out.
pub(super) const NUMBERS: &[(&str, u64)] = &[
    ("head_dim", 256),
    ("linear_conv_kernel_dim", 4),
    ("linear_key_head_dim", 128),
    ("linear_num_key_heads", 16),
    ("linear_num_value_heads", 32),
    ("linear_value_head_dim", 128),
];

/// Settings shared by all families with delta nets and gated attention.
pub(super) const DIALECT: Dialect = Dialect {
    norms_from_one: true,
    left_out: &["mtp.", "visual."],
    numbers: NUMBERS,
    partial_rotary: Some(0.25),
    delta: Some(Delta::Heads),
    gate_in_q: true,
    ..Dialect::USUAL
};

/// Family facts shared by the same families.
pub(super) const HYBRID: Family = Family {
    renormalize: true,
    renamed: &[("post_attention_norm.weight", "ffn_norm.weight")],
    delta: Some(Deltas::Heads { all_but: 4, tiled: true }),
    gate_in_q: true,
    ..Family::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "qwen3next",
    dialects: &[Dialect {
        model_type: "qwen3_next",
        architecture: "qwen3next",
        routed: true,
        flags: &[("norm_topk_prob", true)],
        ..DIALECT
    }],
    delta: Some(Deltas::Heads { all_but: 4, tiled: false }),
    ..HYBRID
};
