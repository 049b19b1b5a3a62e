//! LFM2 with experts (arXiv 2511.23404): some dense layers first, then experts chosen by sigmoid scores with
//! a bias.

use super::{Family, lfm2};
use crate::format::hf::Dialect;
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "lfm2moe",
    dialects: &[Dialect {
        model_type: "lfm2_moe",
        architecture: "lfm2moe",
        rope_base: 1e6,
        routed: true,
        renormalize: Some(true),
        conv: true,
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-6 },
    conv: true,
    renormalize: true,
    renamed: lfm2::RENAMED,
    ..Family::USUAL
};
