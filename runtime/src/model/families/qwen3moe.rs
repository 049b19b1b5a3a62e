//! Qwen3-MoE (arXiv 2505.09388): 128 experts, none shared.

use super::Family;
use crate::format::hf::{Dialect, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "qwen3moe",
    dialects: &[Dialect {
        model_type: "qwen3_moe",
        architecture: "qwen3moe",
        routed: true,
        // There is no list of layers: if windows are enabled, every layer uses them.
        sliding: Some(Sliding { switched: true, listed: false, rhythm: None, on: |_, _| true }),
        ..Dialect::USUAL
    }],
    renormalize: true,
    ..Family::USUAL
};
