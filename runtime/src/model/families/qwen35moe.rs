//! Qwen3.5 and 3.6 with experts (35B-A3B and larger): gated delta nets, gated attention, and a gated shared
//! expert.

use super::Family;
use super::qwen3next::{DIALECT, HYBRID};
use crate::format::hf::Dialect;

/// The chosen gates are divided by their sum; no configuration key says so.
const TEXT: Dialect = Dialect { architecture: "qwen35moe", routed: true, renormalize: Some(true), ..DIALECT };

pub(super) const FAMILY: Family = Family {
    name: "qwen35moe",
    dialects: &[
        Dialect { model_type: "qwen3_5_moe_text", ..TEXT },
        Dialect { model_type: "qwen3_5_moe", ..TEXT },
    ],
    ..HYBRID
};
