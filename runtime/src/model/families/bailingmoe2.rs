//! Ling-mini, Ling-flash and Ring of version 2 (arXiv 2510.22115), and Sarvam-30B: queries, keys and values in
//! one projection, norms per head, a dense first layer, then experts chosen among groups by sigmoid scores with
//! a bias, and a shared one.

use super::Family;
use crate::format::hf::{Dialect, Sparse};
use crate::kernels::Score;

const LING: Dialect = Dialect {
    model_type: "bailing_moe_v2",
    architecture: "bailingmoe2",
    rope_base: 600_000.0,
    sparse: Some(Sparse::SIGMOID),
    partial_rotary: Some(0.5),
    draft_layers: true,
    ..Dialect::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "bailingmoe2",
    dialects: &[
        LING,
        // Published files share their `model_type` with those of version 1.
        Dialect { model_type: "bailing_moe", classes: &["BailingMoeV2ForCausalLM"], ..LING },
        Dialect { model_type: "sarvam_moe", rope_base: 8e6, partial_rotary: Some(1.0), ..LING },
    ],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    ..Family::USUAL
};
