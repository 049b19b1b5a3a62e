//! Laguna (Poolside): three window layers after each full-attention layer, with RoPE and heads of their own, softplus
//! gates of attention, dense first layers, then experts chosen by sigmoid scores with a bias, and a shared one.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding, Sparse};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "laguna",
    dialects: &[Dialect {
        model_type: "laguna",
        architecture: "laguna",
        rope_base: 5e5,
        window_rope_base: Some(1e4),
        partial_rotary: Some(0.5),
        sparse: Some(Sparse { renormalize: Some(true), ..Sparse::SIGMOID }),
        // Without a list of layers, none has a window.
        sliding: Some(Sliding { switched: false, listed: true, rhythm: None, on: |_, _| false }),
        aliases: &[("moe_routed_scaling_factor", "routed_scaling_factor")],
        renamed: &[("self_attn.g_proj", "attn_gate")],
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 0.0 },
    router_keys: true,
    renormalize: true,
    windows: Windows::AllButFirst(4),
    window_rope_base: Some(1e4),
    gated: true,
    softplus: true,
    ..Family::USUAL
};
