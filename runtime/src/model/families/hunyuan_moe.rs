//! Hunyuan-A13B (Tencent): norms per head after RoPE, and a shared expert.

use super::Family;
use crate::format::hf::{Dialect, Sparse};

pub(super) const FAMILY: Family = Family {
    name: "hunyuan-moe",
    dialects: &[Dialect {
        model_type: "hunyuan_v1_moe",
        architecture: "hunyuan-moe",
        sparse: Some(Sparse { sigmoid: false, biased: None, renormalize: Some(true) }),
        ..Dialect::USUAL
    }],
    renormalize: true,
    late_norms: true,
    ..Family::USUAL
};
