//! Qwen1.5-MoE and Qwen2-MoE: small experts and one gated shared expert.

use super::Family;
use crate::format::hf::{Dialect, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "qwen2moe",
    dialects: &[Dialect {
        model_type: "qwen2_moe",
        architecture: "qwen2moe",
        routed: true,
        sliding: Some(Sliding {
            switched: true,
            listed: true,
            rhythm: None,
            on: |layer, edge| layer.is_multiple_of(2) && layer < edge,
        }),
        ..Dialect::USUAL
    }],
    ..Family::USUAL
};
