//! dots.llm1 (arXiv 2506.05767): norms per head, dense first layers, then experts chosen by sigmoid scores with
//! a bias, and shared ones.

use super::Family;
use crate::format::hf::{Dialect, Sliding, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "dots1",
    dialects: &[Dialect {
        model_type: "dots1",
        architecture: "dots1",
        sparse: Some(Sparse::SIGMOID),
        // If there is a window, the upper layers use it.
        sliding: Some(Sliding {
            switched: false,
            listed: true,
            rhythm: None,
            on: |layer, edge| layer >= edge,
        }),
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    ..Family::USUAL
};
