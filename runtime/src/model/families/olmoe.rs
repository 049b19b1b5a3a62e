//! OLMoE (arXiv 2409.02060): 64 experts, and norms over whole rows of queries and keys.

use super::Family;
use crate::format::hf::Dialect;

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    dialects: &[Dialect { model_type: "olmoe", architecture: "olmoe", routed: true, ..Dialect::USUAL }],
    expert_width: "feed_forward_length",
    ..Family::USUAL
};
