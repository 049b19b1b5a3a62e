//! Mellum 2 (JetBrains): norms per head, small experts, and window layers with their own RoPE.

use super::Family;
use crate::format::hf::{Dialect, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "mellum",
    dialects: &[Dialect {
        model_type: "mellum",
        architecture: "mellum",
        rope_base: 5e5,
        window_rope_base: Some(1e4),
        routed: true,
        renormalize: Some(true),
        // Without a list of layers, none has a window.
        sliding: Some(Sliding { switched: false, listed: true, rhythm: None, on: |_, _| false }),
        draft_layers: true,
        left_out: &["mtp."],
        ..Dialect::USUAL
    }],
    renormalize: true,
    window_rope_base: Some(1e4),
    ..Family::USUAL
};
