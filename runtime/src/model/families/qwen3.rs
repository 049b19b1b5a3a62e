//! Qwen3 (arXiv 2505.09388): dense, with norms over each head of queries and keys.

use super::{Family, qwen2};
use crate::format::hf::Dialect;

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    dialects: &[Dialect {
        model_type: "qwen3",
        architecture: "qwen3",
        sliding: Some(qwen2::UPPER),
        ..Dialect::USUAL
    }],
    ..Family::USUAL
};
