//! Nemotron 3 (NVIDIA): each layer is one block: Mamba-2, attention without RoPE, experts, or a dense block. Blocks and
//! experts have no gate.

use super::{Deltas, Family};
use crate::format::hf::{Delta, Dialect, Sparse};
use crate::kernels::{Activation, Score};

pub(super) const FAMILY: Family = Family {
    name: "nemotron_h_moe",
    dialects: &[Dialect {
        model_type: "nemotron_h",
        architecture: "nemotron_h_moe",
        activation: "relu2",
        one_block: true,
        sparse: Some(Sparse::SIGMOID),
        left_out: &["mtp."],
        delta: Some(Delta::Adding),
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    renormalize: true,
    activation: Activation::Reglu,
    gated_blocks: false,
    one_block: true,
    delta: Some(Deltas::Adding),
    rotates: false,
    ..Family::USUAL
};
