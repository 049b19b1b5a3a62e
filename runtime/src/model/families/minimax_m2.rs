//! MiniMax-M2: partial RoPE, norms over whole rows of queries and keys, and experts chosen by sigmoid scores
//! with a bias.

use super::Family;
use crate::format::hf::{Dialect, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "minimax-m2",
    dialects: &[Dialect {
        model_type: "minimax_m2",
        architecture: "minimax-m2",
        rope_base: 5e6,
        sparse: Some(Sparse { renormalize: Some(true), ..Sparse::SIGMOID }),
        partial_rotary: Some(1.0),
        draft_layers: true,
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 0.0 },
    router_keys: true,
    renormalize: true,
    ..Family::USUAL
};
