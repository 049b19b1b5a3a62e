//! ERNIE 4.5 with experts (Baidu), text only: experts chosen by softmax scores with a bias, and shared ones.

use super::Family;
use crate::format::hf::{Dialect, Sparse};

pub(super) const FAMILY: Family = Family {
    name: "ernie4_5-moe",
    dialects: &[Dialect {
        model_type: "ernie4_5_moe",
        architecture: "ernie4_5-moe",
        rope_base: 5e5,
        sparse: Some(Sparse { sigmoid: false, biased: Some(true), renormalize: Some(true) }),
        left_out: &["mtp_"],
        interleaved: true,
        ..Dialect::USUAL
    }],
    biased: true,
    renormalize: true,
    interleaved: true,
    ..Family::USUAL
};
