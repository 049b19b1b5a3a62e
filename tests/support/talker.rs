//! A model whose answer the test chooses: every token has one successor. For tests of the code around a
//! model, where the answer must be known and the weights do not matter.
//!
//! The embedding has a direction for every token, attention and feed-forward add nothing, and the head maps
//! the direction of a token to its successor's logit.

use crate::tiny::le_bytes;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The 256 bytes, then the token that ends a turn.
pub const END: u32 = 256;
const VOCAB: usize = 288;
/// The token that is the whole answer of [`Talker::saying`].
pub const WHOLE: u32 = 257;

/// Written as a Hugging Face folder. The fields may be changed before.
pub struct Talker {
    /// `config.json`.
    pub config: Json,
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Json,
    /// The successor of every token; the end of the turn for tokens without one.
    pub next: Vec<u32>,
    /// The factor of the head's weights.
    pub head_scale: f32,
    /// The weights of the last norm.
    pub norm: f32,
    /// A layer whose feed-forward overflows, and the byte for which it does.
    pub overflow: Option<(usize, u8)>,
    /// The number of layers.
    pub layers: usize,
}

/// The character for a byte in a byte-level vocabulary.
fn spelling(byte: u8) -> char {
    let plain = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let n = (0..byte).filter(|&b| !plain(b)).count() as u32;
    if plain(byte) { char::from(byte) } else { char::from_u32(256 + n).expect("a letter") }
}

impl Talker {
    /// A model that answers `bytes` after a prompt that ends in a line feed, which `template` has to ensure.
    ///
    /// # Panics
    /// If a byte appears twice: it would have two successors.
    pub fn new(bytes: &[u8], template: &str) -> Talker {
        let mut next = vec![END; VOCAB];
        let mut last = b'\n';
        for &byte in bytes {
            assert_eq!(next[usize::from(last)], END, "{last} has a successor");
            next[usize::from(last)] = byte.into();
            last = byte;
        }
        let vocab: BTreeMap<String, u32> = (0..=255u8).map(|b| (spelling(b).to_string(), b.into())).collect();
        let level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        Talker {
            config: json!({
                "model_type": "llama", "vocab_size": VOCAB, "hidden_size": VOCAB, "intermediate_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 9,
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
                "rope_theta": 10000.0, "hidden_act": "silu",
            }),
            tokenizer: json!({
                "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                "pre_tokenizer": level, "post_processor": null, "decoder": level,
                "added_tokens": [{"id": END, "content": "<|end|>", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true}],
                "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                    "ignore_merges": false, "vocab": vocab, "merges": []},
            }),
            tokenizer_config: json!({"eos_token": "<|end|>", "chat_template": template}),
            next,
            head_scale: 1.0,
            norm: 1.0,
            overflow: None,
            layers: 2,
        }
    }

    /// A model that answers any text, as a separate token, after a prompt that ends in a line feed.
    ///
    /// # Panics
    /// Never: the list of added tokens is the one of [`Talker::new`].
    pub fn saying(text: &str, template: &str) -> Talker {
        let mut talker = Talker::new(b"", template);
        let added = talker.tokenizer["added_tokens"].as_array_mut().expect("a list");
        added.push(
            json!({"id": WHOLE, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false}),
        );
        talker.next[usize::from(b'\n')] = WHOLE;
        talker
    }

    /// Writes `config.json`, the tokenizer's two files and `model.safetensors`.
    ///
    /// # Panics
    /// If the folder cannot be written.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("writable");
        let mut config = self.config.clone();
        config["num_hidden_layers"] = self.layers.into();
        for (name, json) in [
            ("config.json", &config),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ] {
            std::fs::write(folder.join(name), json.to_string()).expect("writable");
        }
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        let mut embedding = vec![0.0; VOCAB * VOCAB];
        let mut head = vec![0.0; VOCAB * VOCAB];
        for (token, &next) in self.next.iter().enumerate() {
            embedding[token * VOCAB + token] = 1.0;
            head[next as usize * VOCAB + token] = self.head_scale;
        }
        tensors.push(("model.embed_tokens.weight".into(), vec![VOCAB, VOCAB], embedding));
        tensors.push(("lm_head.weight".into(), vec![VOCAB, VOCAB], head));
        tensors.push(("model.norm.weight".into(), vec![VOCAB], vec![self.norm; VOCAB]));
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            for part in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((name(part), vec![VOCAB], vec![1.0; VOCAB]));
            }
            for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                let weights = vec![0.0; VOCAB * VOCAB];
                tensors.push((name(&format!("self_attn.{part}")), vec![VOCAB, VOCAB], weights));
            }
            for (part, shape) in
                [("gate_proj", [32, VOCAB]), ("up_proj", [32, VOCAB]), ("down_proj", [VOCAB, 32])]
            {
                let weight = if self.overflow.is_some_and(|(l, _)| l == layer) { 1.0 } else { 0.0 };
                tensors.push((name(&format!("mlp.{part}")), shape.to_vec(), vec![weight; 32 * VOCAB]));
            }
        }
        if let Some((layer, byte)) = self.overflow {
            let norm = format!("model.layers.{layer}.post_attention_layernorm.weight");
            let found = tensors.iter_mut().find(|t| t.0 == norm).expect("every layer has one");
            // After it gate and up are about 1e21 each, and their product exceeds f32.
            found.2[usize::from(byte)] = 1e20;
        }
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| le_bytes(&t.2)).collect();
        let views: BTreeMap<&str, TensorView> = (tensors.iter().zip(&bytes))
            .map(|(t, b)| (t.0.as_str(), TensorView::new(Dtype::F32, t.1.clone(), b).expect("sizes agree")))
            .collect();
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("writable");
    }
}
