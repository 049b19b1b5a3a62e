//! Checks that this version understands a file's keys. A key that changes results and is not understood is an
//! error; `dollop inspect` lists the other unused keys.

use super::families::Family;
use crate::error::{Error, Result};
use crate::format::{Metadata, Value};
use crate::kernels::Score;

/// The width of the short convolutions (after `<arch>.`), for families that have them.
pub(super) const TAPS: &str = "shortconv.l_cache";

/// Architecture keys (after `<arch>.`) that [`super::spec`] reads.
const READ: [&str; 32] = [
    "attention.clamp_kqv",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_scale",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_used_count",
    "expert_weights_scale",
    "feed_forward_length",
    "final_logit_softcapping",
    "nextn_predict_layers",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
];

/// Keys read for families with gated delta nets. `rope.dimension_sections` needs no code: for text, all axes
/// of the RoPE have the same position.
const DELTA: [&str; 11] = [
    "attention.recurrent_layers",
    "full_attention_interval",
    "kda.gate_lower_bound",
    "kda.head_dim",
    "kda.safe_gate",
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
];

/// Keys that describe the file, or repeat what its tensors show.
const DESCRIBING: [&str; 7] = [
    "expert_shared_count",
    "interleave_moe_layer_step",
    "leading_dense_block_count",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
    "decoder_sparse_step",
];

/// Keys that we do not implement, with the values that leave results unchanged.
const NEUTRAL: [(&str, &[f64]); 13] = [
    ("attention.causal", &[1.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_group_scale", &[0.0, 1.0]),
    ("full_attention_interval", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("moe_every_n_layers", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("use_parallel_residual", &[0.0]),
];

/// Other namespaces whose keys this version reads, or which only describe the file.
const OTHERS: [&str; 6] = ["general.", "dollop.", "quantize.", "split.", "tokenizer.", "imatrix."];

/// A scalar as a number; `None` for strings and arrays.
pub(super) fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::Unsigned(v, _) => Some(v as f64),
        Value::Signed(v, _) => Some(v as f64),
        Value::F32(v) => Some(v.into()),
        Value::F64(v) => Some(v),
        Value::Bool(v) => Some(v.into()),
        Value::String(_) | Value::Array(_) => None,
    }
}

/// Refuses architecture keys that would change results and are not understood.
///
/// # Errors
/// `Unsupported`, naming the key.
pub fn check(meta: &Metadata, family: &Family) -> Result<()> {
    let prefix = format!("{}.", family.name);
    for (key, value) in meta.iter() {
        let Some(name) = key.strip_prefix(&prefix) else { continue };
        // In families without RoPE, a true value would mean that there is RoPE.
        let turns = name == "rope.scaling.finetuned" && !family.rotates && number(value) != Some(0.0);
        if READ.contains(&name) || DESCRIBING.contains(&name) && !turns {
            continue;
        }
        let number = number(value);
        let harmless = match name {
            TAPS => family.conv,
            "expert_gating_func"
            | "expert_weights_norm"
            | "expert_group_count"
            | "expert_group_used_count"
                if family.router_keys =>
            {
                true
            }
            "expert_gating_func" if matches!(family.score, Score::Sigmoid { .. }) => number == Some(2.0),
            "expert_weights_norm" => number == Some(f64::from(u8::from(family.renormalize))),
            // 3 means softmax over the chosen logits. It equals softmax over all, renormalized over the
            // chosen ones.
            "expert_gating_func" if family.renormalize => {
                number.is_some_and(|v| [0.0, 1.0, 3.0].contains(&v))
            }
            "attention.kv_lora_rank"
            | "attention.q_lora_rank"
            | "attention.key_length_mla"
            | "attention.value_length_mla"
            | "rope.scaling.yarn_log_multiplier"
                if family.latent =>
            {
                true
            }
            "logit_scale" | "residual_scale" if family.multipliers => true,
            // Another name of the same number.
            "attention.layer_norm_epsilon" => {
                let usual = meta.f32(&format!("{prefix}attention.layer_norm_rms_epsilon"))?;
                usual.is_none() || meta.f32(key)? == usual
            }
            _ if DELTA.contains(&name) && family.delta.is_some() => true,
            // Limits of activations, by layer; 0 means none.
            "swiglu_clamp_exp" | "swiglu_clamp_shexp" => {
                meta.f32s(key)?.is_some_and(|all| all.iter().all(|limit| *limit == 0.0))
            }
            "attention.shared_kv_layers" | "embedding_length_per_layer_input" => {
                family.per_layer || number == Some(0.0)
            }
            "attention.key_length_swa"
            | "attention.value_length_swa"
            | "rope.dimension_count_swa"
            | "rope.freq_base_swa" => family.window_rope_base.is_some(),
            _ => NEUTRAL
                .iter()
                .find(|(known, _)| *known == name)
                .is_some_and(|(_, neutral)| number.is_some_and(|v| neutral.contains(&v))),
        };
        if !harmless {
            let what = number.map_or_else(String::new, |v| format!(" with the value {v}"));
            return Err(Error::unsupported(format!(
                "the key `{key}`{what} is not understood; ignoring it would change the model's results, so try a newer version"
            )));
        }
    }
    Ok(())
}

/// Unused keys, as lines for people.
///
/// # Errors
/// `Malformed` if one of our own list keys is not a list of strings.
pub fn notes(meta: &Metadata) -> Result<Vec<String>> {
    let arch = meta.str("general.architecture")?.unwrap_or_default();
    let known = |key: &str| {
        OTHERS.iter().any(|o| key.starts_with(o))
            || key.strip_prefix(arch).is_some_and(|k| k.starts_with('.'))
    };
    let unused: Vec<&str> = meta.iter().map(|(key, _)| key).filter(|key| !known(key)).collect();
    let mut notes = Vec::new();
    if !unused.is_empty() {
        notes.push(format!("keys that are not used: {}", unused.join(", ")));
    }
    if let Some(parts) = meta.strings("dollop.source.left_out")? {
        notes.push(format!(
            "tensors that are left out, of pictures, sound or draft heads: {}",
            parts.join(", ")
        ));
    }
    if let Some(config) = meta.strings("dollop.source.unused")? {
        notes.push(format!("keys of config.json that are not used: {}", config.join(", ")));
    }
    if let Some(generation) = meta.strings("dollop.source.generation_unused")? {
        notes.push(format!("keys of generation_config.json that are not used: {}", generation.join(", ")));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, value: impl Into<Value>) -> Result<()> {
        let mut meta = Metadata::new();
        meta.insert(key, value);
        check(&meta, Family::find("qwen3moe").unwrap())
    }

    #[test]
    fn a_key_that_changes_results_is_understood_or_refused() {
        for (key, value) in [
            ("qwen3moe.attn_logit_softcapping", 30.0),
            ("qwen3moe.rope.scaling.yarn_log_multiplier", 0.1),
            ("qwen3moe.expert_gating_func", 2.0),
            ("qwen3moe.rope.freq_base_swa", 10_000.0),
            ("qwen3moe.something.new", 0.0),
        ] {
            let text = checked(key, value as f32).unwrap_err().to_string();
            assert!(text.contains(key) && text.contains("not understood"), "{text}");
            assert!(
                checked(&key.replace("qwen3moe", "llama"), value as f32).is_ok(),
                "another architecture's"
            );
        }
        assert!(checked("qwen3moe.expert_weights_norm", false).is_err());
        assert!(checked("qwen3moe.attention.causal", "yes").is_err());
        for (key, value) in [
            ("qwen3moe.attn_logit_softcapping", 0.0),
            ("qwen3moe.logit_scale", 1.0),
            ("qwen3moe.block_count", 3.0),
            ("general.anything", 1.0),
        ] {
            checked(key, value as f32).unwrap();
        }
        checked("qwen3moe.expert_weights_norm", true).unwrap();
        checked("qwen3moe.expert_gating_func", 1u32).unwrap();
    }

    #[test]
    fn what_is_harmless_is_told() {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "llama");
        meta.insert("general.author", "x");
        meta.insert("llama.block_count", 1u32);
        assert!(notes(&meta).unwrap().is_empty());
        meta.insert("mradermacher.quantized", "x");
        meta.insert("llamaX", 1u32);
        meta.insert("dollop.source.left_out", vec!["vision_tower (4)".to_owned()]);
        meta.insert("dollop.source.unused", vec!["a".to_owned(), "b".into()]);
        meta.insert("dollop.source.generation_unused", vec!["c".to_owned()]);
        let notes = notes(&meta).unwrap();
        assert_eq!(
            notes,
            [
                "keys that are not used: mradermacher.quantized, llamaX",
                "tensors that are left out, of pictures, sound or draft heads: vision_tower (4)",
                "keys of config.json that are not used: a, b",
                "keys of generation_config.json that are not used: c"
            ]
        );
    }
}
