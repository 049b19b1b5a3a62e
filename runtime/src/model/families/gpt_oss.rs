//! gpt-oss (arXiv 2508.10925): attention sinks, biases everywhere, a window in every other layer, clamped
//! SwiGLU.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding, Stacks};
use crate::kernels::Activation;

pub(super) const FAMILY: Family = Family {
    name: "gpt-oss",
    dialects: &[Dialect {
        model_type: "gpt_oss",
        architecture: "gpt-oss",
        rope_base: 150_000.0,
        routed: true,
        renormalize: Some(true),
        sliding: Some(Sliding {
            switched: false,
            listed: true,
            rhythm: None,
            on: |layer, _| layer.is_multiple_of(2),
        }),
        stacks: Stacks::Alternating,
        conv: false,
        clamped: true,
        ..Dialect::USUAL
    }],
    // Softmax over the chosen logits equals softmax over all, renormalized over the chosen ones.
    renormalize: true,
    windows: Windows::Even,
    renamed: &[("post_attention_norm.weight", "ffn_norm.weight")],
    sinks: true,
    biases: true,
    activation: Activation::Clamped { alpha: 1.702, limit: 7.0 },
    // GGUF has no key for this.
    yarn_truncate: false,
    ..Family::USUAL
};
