//! Gemma 3 (arXiv 2503.19786), its text model: norms on both sides of mixer and feed-forward, GeGLU, five layers with a window for
//! one that sees everything, each kind with its own rope.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding};
use crate::kernels::Activation;

/// A layer with a window for all but every sixth, unless the configuration has another rhythm.
const RHYTHM: usize = 6;

pub(super) const TEXT: Dialect = Dialect {
    model_type: "gemma3_text",
    architecture: "gemma3",
    rope_base: 1e6,
    window_rope_base: Some(1e4),
    sliding: Some(Sliding {
        switched: false,
        listed: true,
        rhythm: Some(RHYTHM as u64),
        on: |layer, rhythm| !(layer + 1).is_multiple_of(rhythm),
    }),
    activation: "gelu_pytorch_tanh",
    embed_root: true,
    norms_from_one: true,
    renamed: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    // The class's, which the first checkpoints leave out.
    numbers: &[
        ("head_dim", 256),
        ("max_position_embeddings", 131_072),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("query_pre_attn_scalar", 256),
        ("sliding_window", 4096),
    ],
    ..Dialect::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    dialects: &[
        TEXT,
        Dialect { model_type: "gemma3", left_out: &["vision_tower.", "multi_modal_projector."], ..TEXT },
    ],
    windows: Windows::AllBut(RHYTHM),
    activation: Activation::Geglu,
    sandwich: true,
    embed_root: true,
    // GGUF has no key for it: the one with 62 layers (27B) has another.
    score_scale: |attention, d, layers| {
        let values = if layers == 62 { d / attention.heads } else { attention.head_dim };
        1.0 / (values as f32).sqrt()
    },
    window_rope_base: Some(1e4),
    ..Family::USUAL
};
