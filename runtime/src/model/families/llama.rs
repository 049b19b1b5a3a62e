//! Llama and models of the same architecture: Mistral, and Mixtral (arXiv 2401.04088) with experts.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding};

/// If there is a window, every layer uses it.
const ALWAYS: Sliding = Sliding { switched: false, listed: true, rhythm: None, on: |_, _| true };

pub(super) const FAMILY: Family = Family {
    name: "llama",
    dialects: &[
        Dialect {
            model_type: "mixtral",
            architecture: "llama",
            rope_base: 1e6,
            routed: true,
            renormalize: Some(true),
            sliding: Some(ALWAYS),
            ..Dialect::USUAL
        },
        Dialect { model_type: "llama", architecture: "llama", ..Dialect::USUAL },
        Dialect { model_type: "mistral", architecture: "llama", sliding: Some(ALWAYS), ..Dialect::USUAL },
    ],
    renormalize: true,
    windows: Windows::All,
    expert_width: "feed_forward_length",
    interleaved: true,
    ..Family::USUAL
};
