//! Qwen3-MoE (arXiv 2505.09388): 128 experts, none shared.

use super::Family;
use crate::format::hf::{Dialect, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "qwen3moe",
    dialects: &[Dialect {
        model_type: "qwen3_moe",
        architecture: "qwen3moe",
        routed: true,
        // Of layers there is no list: a window that is switched on is for all.
        sliding: Some(Sliding { switched: true, listed: false, rhythm: None, on: |_, _| true }),
        ..Dialect::USUAL
    }],
    renormalize: true,
    ..Family::USUAL
};
