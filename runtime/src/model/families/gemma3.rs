//! Gemma 3 (arXiv 2503.19786), text only: norms before and after mixer and feed-forward, GeGLU, and five
//! window layers per full-attention layer, each kind with its own RoPE.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding};
use crate::kernels::Activation;

/// Every sixth layer has full attention, unless the configuration says otherwise.
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
    // Defaults of the class in `transformers`, which the first checkpoints leave out.
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
    // GGUF has no key for this scale. Only the model with 62 layers (27B) differs.
    score_scale: |heads| {
        let values = if heads.layers == 62 { heads.d / heads.count } else { heads.dim };
        1.0 / (values as f32).sqrt()
    },
    window_rope_base: Some(1e4),
    ..Family::USUAL
};

#[cfg(test)]
mod tests {
    use crate::format::Metadata;
    use crate::model::Spec;
    use crate::model::families::metadata_from_config;

    /// `transformers` rounds √d to the weights' type: 25.298 becomes 25.25. Missing numbers of a
    /// configuration are the class's defaults.
    #[test]
    fn embeddings_are_scaled_as_their_type_has_it() {
        for (dtype, want) in [("bfloat16", 25.25), ("float16", 25.296875), ("float32", 640f32.sqrt())] {
            let config = format!(
                r#"{{"model_type": "gemma3", "vision_config": {{"num_hidden_layers": 3}}, "dtype": "{dtype}",
                "text_config": {{"hidden_size": 640, "num_hidden_layers": 12, "intermediate_size": 2048,
                "model_type": "gemma3_text", "rope_scaling": {{"rope_type": "linear", "factor": 8.0}}}}}}"#
            );
            let spec = Spec::from_metadata(&metadata_from_config(&config).unwrap()).unwrap();
            assert_eq!((spec.embed_scale, spec.layers.len()), (want, 12));
            let attention = spec.layers.iter().filter_map(|l| l.attention().copied());
            assert!(attention.clone().all(|a| (a.heads, a.kv_heads, a.head_dim) == (8, 4, 256)));
            let windows: Vec<bool> = attention.clone().map(|a| a.window == Some(4096)).collect();
            assert!(windows.iter().enumerate().all(|(i, window)| *window == (i % 6 != 5)));
            assert!(attention.clone().all(|a| a.rope == usize::from(a.window.is_some())));
            assert_eq!(spec.ropes.iter().map(|r| r.base).collect::<Vec<_>>(), [1e6, 1e4]);
        }
    }

    #[test]
    fn scores_of_the_largest_are_scaled_otherwise() {
        for (layers, values) in [(48u32, 128f32), (62, 168.0)] {
            let mut meta = Metadata::new();
            meta.insert("general.architecture", "gemma3");
            for (key, value) in [
                ("block_count", layers),
                ("context_length", 1024),
                ("embedding_length", 5376),
                ("attention.head_count", 32),
                ("attention.head_count_kv", 16),
                ("attention.key_length", 128),
                ("attention.value_length", 128),
                ("attention.sliding_window", 1024),
            ] {
                meta.insert(format!("gemma3.{key}"), value);
            }
            meta.insert("gemma3.attention.layer_norm_rms_epsilon", 1e-6f32);
            let spec = Spec::from_metadata(&meta).unwrap();
            assert!(spec.layers.iter().all(|l| l.attention().unwrap().scale == 1.0 / values.sqrt()));
        }
    }
}
