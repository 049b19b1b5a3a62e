//! Qwen3.5 and 3.6 with experts (35B-A3B and larger): gated delta nets, gated attention, a gated shared expert.

use super::Family;
use super::qwen3next::{DIALECT, HYBRID};
use crate::format::hf::Dialect;

/// The weights of the chosen are divided by their sum, and no key says it.
const TEXT: Dialect = Dialect { architecture: "qwen35moe", routed: true, renormalize: Some(true), ..DIALECT };

pub(super) const FAMILY: Family = Family {
    name: "qwen35moe",
    dialects: &[
        Dialect { model_type: "qwen3_5_moe_text", ..TEXT },
        Dialect { model_type: "qwen3_5_moe", ..TEXT },
    ],
    ..HYBRID
};
