//! GroveMoE (inclusionAI, arXiv 2508.07785): Qwen3 with experts, pairs of which share a narrow expert.

use super::Family;
use crate::format::hf::Dialect;

pub(super) const FAMILY: Family = Family {
    name: "grovemoe",
    dialects: &[Dialect {
        model_type: "grove_moe",
        architecture: "grovemoe",
        routed: true,
        renormalize: Some(true),
        unused: &["mlp.expert_bias"],
        ..Dialect::USUAL
    }],
    renormalize: true,
    narrow_experts: Some(0.05),
    ..Family::USUAL
};
