//! Trinity (Arcee): three window layers per full-attention layer, RoPE only in the former, gated attention, norms
//! before and after mixer and feed-forward, dense first layers, then experts chosen by sigmoid scores with a bias,
//! and shared ones.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding, Sparse};
use crate::kernels::Score;

/// Every fourth layer has full attention, unless the configuration says otherwise.
const RHYTHM: usize = 4;

pub(super) const FAMILY: Family = Family {
    name: "afmoe",
    dialects: &[Dialect {
        model_type: "afmoe",
        architecture: "afmoe",
        sparse: Some(Sparse { renormalize: Some(true), ..Sparse::SIGMOID }),
        sliding: Some(Sliding {
            switched: false,
            listed: true,
            rhythm: Some(RHYTHM as u64),
            on: |layer, rhythm| !(layer + 1).is_multiple_of(rhythm),
        }),
        embed_root: true,
        renamed: &[
            ("mlp.router.gate", "ffn_gate_inp"),
            ("post_attention_layernorm", "post_attention_norm"),
            ("post_mlp_layernorm", "post_ffw_norm"),
            ("pre_mlp_layernorm", "ffn_norm"),
            ("self_attn.gate_proj", "attn_gate"),
        ],
        flags: &[("mup_enabled", false)],
        ..Dialect::USUAL
    }],
    score: Score::Sigmoid { eps: 1e-20 },
    router_keys: true,
    renormalize: true,
    windows: Windows::AllBut(RHYTHM),
    sandwich: true,
    embed_root: true,
    rope_in_windows: true,
    gated: true,
    ..Family::USUAL
};
