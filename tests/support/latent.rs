//! Tiny models of GLM-4.5's, DeepSeek's and Kimi Linear's form as llama.cpp's converter writes them (`conversion/glm.py`,
//! `conversion/deepseek.py`, `conversion/kimi_linear.py`, `conversion/bailingmoe3.py`). Gate 113 compares with the converter.

use crate::gptoss::{self, Written};
use crate::tiny::{Tiny, le_bytes};
use dollop::internal::format::{GgmlType, Metadata, hf};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The keys of a GGUF file, none of them ours.
pub(crate) fn keys(meta: &Metadata, config: &Json) -> Metadata {
    let mut keys = gptoss::keys(meta);
    match meta.require_str("general.architecture").expect("is there") {
        "deepseek2" => {}
        arch @ ("kimi-linear" | "bailingmoe3") => return of_channels(keys, arch, config),
        _ => return keys,
    }
    let number = |of: &Json| of.as_u64().expect("a number") as u32;
    keys.remove("deepseek2.expert_gating_func");
    if config["norm_topk_prob"] == false {
        keys.remove("deepseek2.expert_weights_norm");
    }
    keys.insert("deepseek2.vocab_size", number(&config["vocab_size"]));
    keys.insert("deepseek2.expert_group_count", number(&config["n_group"]));
    keys.insert("deepseek2.expert_group_used_count", number(&config["topk_group"]));
    let rope = [&config["rope_scaling"], &config["rope_parameters"]];
    if let Some(all) = rope.iter().find_map(|rope| rope["mscale_all_dim"].as_f64()) {
        keys.insert("deepseek2.rope.scaling.yarn_log_multiplier", (0.1 * all) as f32);
        keys.insert("deepseek2.rope.scaling.original_context_length", 32u32);
    }
    keys
}

/// Keys of delta nets with a decay per channel. Layers without key/value heads are such nets.
fn of_channels(mut keys: Metadata, arch: &str, config: &Json) -> Metadata {
    let key = |name: &str| format!("{arch}.{name}");
    let nets = keys.bools(&key("attention.recurrent_layers")).expect("a list").expect("is there").to_vec();
    keys.remove(&key("attention.recurrent_layers"));
    keys.insert(key("attention.head_count_kv"), nets.iter().map(|net| u64::from(!net)).collect::<Vec<u64>>());
    keys.insert(key("vocab_size"), config["vocab_size"].as_u64().expect("a number") as u32);
    keys.insert(key("attention.value_length"), config["head_dim"].as_u64().expect("a number") as u32);
    if arch == "kimi-linear" && keys.bool(&key("expert_weights_norm")).expect("a flag") == Some(true) {
        keys.remove(&key("expert_weights_norm"));
    }
    if keys.u64(&key("expert_group_count")).expect("a number") == Some(1) {
        keys.remove(&key("expert_group_count"));
    }
    keys
}

/// What old files have instead: the heads' own lengths.
pub(crate) fn old(keys: &mut Metadata) {
    let heads = keys.u64("deepseek2.attention.head_count").expect("a number").expect("is there");
    keys.insert("deepseek2.attention.head_count_kv", heads as u32);
    for name in ["key_length", "value_length"] {
        let own = keys.u64(&format!("deepseek2.attention.{name}_mla")).expect("a number").expect("is there");
        keys.remove(&format!("deepseek2.attention.{name}_mla"));
        keys.insert(format!("deepseek2.attention.{name}"), own as u32);
    }
}

/// Its tensors: experts stacked, no draft head, and keys and values of a latent separate unless `fused`.
pub(crate) fn tensors(tiny: &Tiny, dialect: &hf::Dialect, fused: bool) -> Vec<Written> {
    let layers = tiny.config["num_hidden_layers"].as_u64().expect("a number");
    let mut stacks: BTreeMap<String, (Vec<usize>, BTreeMap<usize, Vec<f32>>)> = BTreeMap::new();
    let mut put = |name: String, expert: usize, shape: &[usize], data: Vec<f32>| {
        let stack = stacks.entry(name).or_insert_with(|| (shape.to_vec(), BTreeMap::new()));
        stack.1.insert(expert, data);
    };
    for (name, shape, data) in &tiny.tensors {
        if hf::left_out(name, dialect, layers).is_some() {
            continue;
        }
        let places = hf::places(name, dialect).expect("the tensor is known");
        match &places[..] {
            [place] => {
                let other =
                    if dialect.architecture == "glm4moe" { "post_attention_norm" } else { "ffn_norm" };
                let to = place.name.replace("ffn_norm", other);
                let mut data = data.clone();
                place.stored.turn(&mut data);
                if dialect.architecture == "bailingmoe3" && to.ends_with(".ssm_a") {
                    data.iter_mut().for_each(|a| *a = -*a);
                }
                let is_gate = to.ends_with(".attn_gate.weight") && shape[0] > 4;
                let to = if is_gate { to.replace("attn_gate", "ssm_g_a") } else { to };
                let shape = match shape[..] {
                    [heads] if dialect.architecture == "bailingmoe3" && to.ends_with(".ssm_a") => {
                        vec![heads, 1]
                    }
                    [channels, 1, taps] => vec![1, channels, 1, taps],
                    _ => shape.clone(),
                };
                put(to, place.expert.unwrap_or(0), &shape, data);
            }
            [keys, _] if fused => put(keys.name.replace("attn_k_b", "attn_kv_b"), 0, shape, data.clone()),
            [keys, values] => {
                let of = |key: &str| tiny.config[key].as_u64().expect("a number") as usize;
                let (nope, v, rank) = (of("qk_nope_head_dim"), of("v_head_dim"), of("kv_lora_rank"));
                let heads: Vec<&[f32]> = data.chunks_exact((nope + v) * rank).collect();
                let turned = |head: &&[f32]| -> Vec<f32> {
                    (0..rank * nope).map(|i| head[i % nope * rank + i / nope]).collect()
                };
                let all = heads.iter().flat_map(turned).collect();
                put(keys.name.clone(), 0, &[heads.len(), rank, nope], all);
                let all = heads.iter().flat_map(|head| head[nope * rank..].to_vec()).collect();
                put(values.name.clone(), 0, &[heads.len(), v, rank], all);
            }
            _ => panic!("{name} has {} places", places.len()),
        }
    }
    let written = |(name, (mut shape, parts)): (String, (Vec<usize>, BTreeMap<usize, Vec<f32>>))| {
        if name.contains("_exps.") {
            shape.insert(0, parts.len());
        }
        let all: Vec<f32> = parts.into_values().flatten().collect();
        (name, shape, GgmlType::F32, le_bytes(&all))
    };
    stacks.into_iter().map(written).collect()
}
