//! Granite 4 (IBM): Mamba-2 in most layers, attention without RoPE in the others. Feed-forward layers have experts or
//! are dense. There are factors on embeddings, scores, residuals and logits.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect};

pub(super) const FAMILY: Family = Family {
    name: "granitehybrid",
    dialects: &[Dialect {
        model_type: "granitemoehybrid",
        architecture: "granitehybrid",
        routed: true,
        renormalize: Some(true),
        delta: Some(Delta::Adding),
        // The class's default; the usual scale would be another.
        numbers: &[("attention_multiplier", 1)],
        ..Dialect::USUAL
    }],
    // Softmax over the chosen logits equals softmax over all, renormalized over the chosen ones.
    renormalize: true,
    expert_width: "feed_forward_length",
    multipliers: true,
    delta: Some(Deltas::Adding),
    rotates: false,
    ..Family::USUAL
};
