//! Tiny models of GLM-4.5's shape as llama.cpp's converter writes them (`conversion/glm.py`). Gate 113 compares with the converter.

use crate::gptoss::{self, Written};
use crate::tiny::{Tiny, le_bytes};
use dollop::internal::format::{GgmlType, Metadata, hf};
use std::collections::BTreeMap;

/// Keys that a GGUF file has: none of them is ours.
pub(crate) fn keys(meta: &Metadata) -> Metadata {
    gptoss::keys(meta)
}

/// Its tensors: experts stacked, the norm before them under its other name, no draft head.
pub(crate) fn tensors(tiny: &Tiny, dialect: &hf::Dialect) -> Vec<Written> {
    let layers = tiny.config["num_hidden_layers"].as_u64().expect("a number");
    let mut stacks: BTreeMap<String, (Vec<usize>, BTreeMap<usize, Vec<f32>>)> = BTreeMap::new();
    for (name, shape, data) in &tiny.tensors {
        if hf::left_out(name, dialect, layers).is_some() {
            continue;
        }
        let places = hf::places(name, dialect).expect("the tensor is known");
        let [place] = &places[..] else { panic!("{name} has {} places", places.len()) };
        let to = place.name.replace("ffn_norm", "post_attention_norm");
        let stack = stacks.entry(to).or_insert_with(|| (shape.clone(), BTreeMap::new()));
        stack.1.insert(place.expert.unwrap_or(0), data.clone());
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
