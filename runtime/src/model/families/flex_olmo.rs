//! FlexOlmo (arXiv 2507.07024): no norms before mixer and experts but after both, and norms over whole rows of
//! queries and keys. llama.cpp has no such architecture.

use super::Family;
use crate::format::hf::Dialect;

pub(super) const FAMILY: Family = Family {
    name: "flex-olmo",
    dialects: &[Dialect {
        model_type: "flex_olmo",
        architecture: "flex-olmo",
        rope_base: 5e5,
        routed: true,
        renamed: &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
        ..Dialect::USUAL
    }],
    expert_width: "feed_forward_length",
    pre_norms: false,
    sandwich: true,
    ..Family::USUAL
};
