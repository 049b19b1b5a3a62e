//! Granite 3 with experts (IBM), some with a shared expert: factors on embeddings, scores, residuals and
//! logits.

use super::Family;
use crate::format::hf::Dialect;

const PLAIN: Dialect = Dialect {
    model_type: "granitemoe",
    architecture: "granitemoe",
    routed: true,
    renormalize: Some(true),
    // The class's default; the usual scale would be another.
    numbers: &[("attention_multiplier", 1)],
    ..Dialect::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "granitemoe",
    dialects: &[PLAIN, Dialect { model_type: "granitemoeshared", ..PLAIN }],
    // Softmax over the chosen logits equals softmax over all, renormalized over the chosen ones.
    renormalize: true,
    expert_width: "feed_forward_length",
    interleaved: true,
    multipliers: true,
    ..Family::USUAL
};
