//! Qwen2 (arXiv 2407.10671): dense, with biases on queries, keys and values.

use super::Family;
use crate::format::hf::{Dialect, Sliding};

/// If windows are enabled, the upper layers use them.
pub(super) const UPPER: Sliding =
    Sliding { switched: true, listed: true, rhythm: None, on: |layer, edge| layer >= edge };

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    dialects: &[Dialect {
        model_type: "qwen2",
        architecture: "qwen2",
        sliding: Some(UPPER),
        ..Dialect::USUAL
    }],
    ..Family::USUAL
};
