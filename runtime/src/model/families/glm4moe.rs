//! GLM-4.5 and models of the same architecture (arXiv 2508.06471): partial RoPE, sometimes norms per head,
//! dense first layers, then experts chosen by sigmoid scores with a bias, and shared ones.

use super::Family;
use crate::format::hf::{Dialect, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "glm4moe",
    dialects: &[Dialect {
        model_type: "glm4_moe",
        architecture: "glm4moe",
        sparse: Some(Sparse::SIGMOID),
        partial_rotary: Some(0.5),
        draft_layers: true,
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    renamed: &[("post_attention_norm.weight", "ffn_norm.weight")],
    ..Family::USUAL
};
