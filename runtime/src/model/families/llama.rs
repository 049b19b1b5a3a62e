//! Llama, and what has its shape: Mistral, and with experts Mixtral (arXiv 2401.04088).

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding};

/// In every layer, where a window is given at all.
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
