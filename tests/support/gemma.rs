//! A tiny Gemma as llama.cpp's converter writes it (`conversion/gemma.py`): without scales of scores and embeddings, with
//! lists of windows and heads by layer, gate and up of experts in one stack, and rope frequencies for unrotated parts.

use crate::gptoss::Written;
use crate::tiny::{Tiny, le_bytes};
use dollop::internal::format::hf::{self, Cut, Dialect};
use dollop::internal::format::{GgmlType, Metadata};

/// The keys of a GGUF file. For Gemma 3 none defines which layers have a window, or their rope's base.
pub(crate) fn keys(meta: &Metadata, architecture: &str) -> Metadata {
    let of_4 = architecture == "gemma4";
    let left_out = ["attention.scale", "embedding_scale", "expert_weights_scale"];
    let of_3 = ["rope.freq_base_swa", "rope.dimension_count"];
    let mut all = Metadata::new();
    for (key, value) in meta.iter() {
        let lost =
            left_out.iter().any(|l| key.ends_with(l)) || !of_4 && of_3.iter().any(|l| key.ends_with(l));
        if !key.starts_with("dollop.") && !lost {
            all.insert(key, value.clone());
        }
    }
    if of_4 {
        let windows = meta.bools("dollop.attention.window_layers").expect("a list").expect("is there");
        all.insert("gemma4.attention.sliding_window_pattern", windows.to_vec());
        for key in ["gemma4.attention.shared_kv_layers", "gemma4.embedding_length_per_layer_input"] {
            all.insert(key, meta.get(key).cloned().unwrap_or(0u32.into()));
        }
    }
    all
}

/// Its tensors.
pub(crate) fn tensors(tiny: &Tiny, dialect: &Dialect, meta: &Metadata) -> Vec<Written> {
    let mut all = Vec::new();
    for (name, shape, data) in tiny.tensors.iter().filter(|t| hf::left_out(&t.0, dialect, u64::MAX).is_none())
    {
        let places = hf::places(name, dialect).expect("the tensor is known");
        let Some(place) = places.first() else { continue };
        let mut data = data.clone();
        place.stored.turn(&mut data);
        let name = match place.cut {
            Cut::Whole => place.name.clone(),
            _ => place.name.replace("ffn_gate_exps", "ffn_gate_up_exps"),
        };
        all.push((name, shape.clone(), GgmlType::F32, le_bytes(&data)));
    }
    // Files may contain tensors that layers with another layer's keys do not use.
    let number = |key: &str| meta.u64(key).expect("a number").unwrap_or(0);
    if number("gemma4.attention.shared_kv_layers") > 0 {
        let last = number("gemma4.block_count") - 1;
        all.push((format!("blk.{last}.attn_k.weight"), vec![2, 2], GgmlType::F32, le_bytes(&[0.0; 4])));
    }
    if let Some(part) = meta.f32("dollop.rope.proportional").expect("a number") {
        let dims = meta.u64("gemma4.rope.dimension_count").expect("a number").expect("is there") as usize;
        let turning = (part * dims as f32 / 2.0) as usize;
        let factors: Vec<f32> = (0..dims / 2).map(|i| if i < turning { 1.0 } else { 1e30 }).collect();
        all.push(("rope_freqs.weight".into(), vec![dims / 2], GgmlType::F32, le_bytes(&factors)));
    }
    all
}
