//! Gemma 4, text only. It differs from Gemma 3 in plain norms, another head size in full-attention layers,
//! and normed values. It also has either a dense block in parallel with routed experts, or extra layer inputs
//! and last layers that share keys and values.

use super::{Family, Windows, gemma3};
use crate::format::hf::Dialect;
use crate::kernels::Activation;

const TEXT: Dialect = Dialect {
    model_type: "gemma4_text",
    architecture: "gemma4",
    routed: true,
    renormalize: Some(true),
    norms_from_one: false,
    sees_all: Some("global"),
    per_layer: true,
    renamed: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        ("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        ("router.proj", "ffn_gate_inp"),
        ("per_layer_input_gate", "inp_gate"),
        ("per_layer_projection", "proj"),
        ("post_per_layer_input_norm", "post_norm"),
    ],
    // Defaults of the class in `transformers`.
    numbers: &[
        ("head_dim", 256),
        ("hidden_size_per_layer_input", 256),
        ("max_position_embeddings", 131_072),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("sliding_window", 512),
    ],
    ..gemma3::TEXT
};

pub(super) const FAMILY: Family = Family {
    name: "gemma4",
    dialects: &[
        TEXT,
        Dialect {
            model_type: "gemma4",
            left_out: &["vision_tower.", "audio_tower.", "embed_vision.", "embed_audio."],
            ..TEXT
        },
    ],
    renormalize: true,
    // Files list the window layers.
    windows: Windows::Listed,
    activation: Activation::Geglu,
    sandwich: true,
    embed_root: true,
    score_scale: |_| 1.0,
    v_norm: true,
    keys_as_values: true,
    beside: true,
    layer_scales: true,
    per_layer: true,
    rope_factors: true,
    window_rope_base: Some(1e4),
    ..Family::USUAL
};
