//! Qwen3.5, dense: gated delta nets and gated attention. Of the multimodal models we run the text part.

use super::Family;
use super::qwen3next::{DIALECT, HYBRID};
use crate::format::hf::Dialect;

pub(super) const FAMILY: Family = Family {
    name: "qwen35",
    dialects: &[
        Dialect { model_type: "qwen3_5_text", architecture: "qwen35", ..DIALECT },
        Dialect { model_type: "qwen3_5", architecture: "qwen35", ..DIALECT },
    ],
    ..HYBRID
};
