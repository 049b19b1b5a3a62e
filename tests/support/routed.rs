//! Tiny models of attention and routed experts as llama.cpp's converter writes them. Their keys are the converter's own (`NAME.gguf.json`),
//! names and bytes of tensors are made here; gate 113 compares those with the converter's.

use crate::gptoss::Written;
use crate::tiny::{Tiny, interleave, le_bytes};
use dollop::internal::format::hf::{self, Cut, Delta, Dialect, Place};
use dollop::internal::format::{GgmlType, Metadata};
use dollop::internal::model::families::Family;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The beginnings of their goldens' names.
pub const FAMILIES: [&str; 13] = [
    "bailingmoe2",
    "granitemoe",
    "mellum",
    "ernie4_5moe",
    "dots1",
    "minimaxm2",
    "hunyuanmoe",
    "afmoe",
    "flexolmo",
    "phimoe",
    "smallthinker",
    "laguna",
    "grovemoe",
];

/// The keys of the converter's file, if it makes one of this golden.
pub(crate) fn keys(name: &str) -> Option<Metadata> {
    let text = std::fs::read_to_string(crate::golden("models").join(format!("{name}.gguf.json"))).ok()?;
    let json: Json = serde_json::from_str(&text).expect("gguf.py wrote JSON");
    let mut all = Metadata::new();
    all.insert("general.architecture", json["architecture"].as_str().expect("a name"));
    for (key, value) in json["keys"].as_object().expect("keys") {
        match value {
            Json::Bool(is) => all.insert(key, *is),
            Json::String(text) => all.insert(key, text.as_str()),
            Json::Number(n) if n.is_u64() => all.insert(key, n.as_u64().expect("a number") as u32),
            Json::Number(n) => all.insert(key, n.as_f64().expect("a number") as f32),
            Json::Array(list) if list[0].is_u64() => {
                all.insert(key, list.iter().map(|v| v.as_u64().expect("a number")).collect::<Vec<_>>())
            }
            Json::Array(list) => {
                all.insert(key, list.iter().map(|v| v.as_bool().expect("a flag")).collect::<Vec<_>>())
            }
            other => panic!("{key}: {other}"),
        }
    }
    Some(all)
}

/// The shape of a Mamba-2 tensor in llama.cpp's files.
fn of_mamba(name: &str, shape: &[usize], groups: usize) -> Vec<usize> {
    match *shape {
        [channels, 1, taps] => vec![channels, taps],
        [heads] if name.ends_with(".ssm_a") || name.ends_with(".ssm_d") => vec![heads, 1],
        [width] if name.ends_with(".ssm_norm.weight") => vec![groups, width / groups],
        _ => shape.to_vec(),
    }
}

/// Its tensors: experts stacked, gates and ups that are one matrix apart.
pub(crate) fn tensors(tiny: &Tiny, dialect: &Dialect) -> Vec<Written> {
    let family = Family::find(dialect.architecture).expect("the family is supported");
    let heads = |key: &str| tiny.config[key].as_u64().expect("a number") as usize;
    let adding = dialect.delta == Some(Delta::Adding);
    let groups = ["mamba_n_groups", "n_groups"].iter().find_map(|key| tiny.config[key].as_u64()).unwrap_or(0);
    let mut stacks: BTreeMap<String, (Vec<usize>, BTreeMap<usize, Vec<f32>>)> = BTreeMap::new();
    for (name, shape, data) in &tiny.tensors {
        if hf::left_out(name, dialect, u64::MAX).is_some() {
            continue;
        }
        let mut places = hf::places(name, dialect).expect("the tensor is known");
        if name.contains("query_key_value") {
            // The file keeps them in one.
            places.truncate(1);
            places[0] = Place::whole(places[0].name.replace("attn_q", "attn_qkv"), None);
        }
        if name.ends_with(".in_proj.weight") {
            places.truncate(1);
            places[0] = Place::whole(places[0].name.replace("attn_qkv", "ssm_in"), None);
        }
        for mut place in places {
            let (mut shape, mut data) = (shape.clone(), data.clone());
            place.stored.turn(&mut data);
            if adding {
                shape = of_mamba(&place.name, &shape, groups as usize);
            }
            if tiny.config["num_local_experts"] == 0 {
                place.name = place.name.replace("_shexp.", ".");
            }
            if let Cut::Half(half) = place.cut {
                let rows = shape.len() - 2;
                shape[rows] /= 2;
                let part = shape[rows] * shape[rows + 1];
                data = data.chunks_exact(2 * part).flat_map(|e| e[half * part..][..part].to_vec()).collect();
            }
            // The converter interleaves these rows, too, although the models have no RoPE.
            let unrotated = adding;
            if (family.interleaved || unrotated) && !dialect.interleaved {
                let cols = shape.last().copied().unwrap_or(1);
                match place.name.as_str() {
                    n if n.contains("attn_q.") => {
                        data = interleave(&data, heads("num_attention_heads"), cols)
                    }
                    n if n.contains("attn_k.") => {
                        data = interleave(&data, heads("num_key_value_heads"), cols)
                    }
                    _ => {}
                }
            }
            let stack = stacks.entry(place.name).or_insert_with(|| (shape, BTreeMap::new()));
            stack.1.insert(place.expert.unwrap_or(0), data);
        }
    }
    let written = |(name, (mut shape, parts)): (String, (Vec<usize>, BTreeMap<usize, Vec<f32>>))| {
        if name.contains("exps.") && shape.len() == 2 {
            shape.insert(0, parts.len());
        }
        let all: Vec<f32> = parts.into_values().flatten().collect();
        (name, shape, GgmlType::F32, le_bytes(&all))
    };
    let factors = ["short", "long"].into_iter().filter_map(|part| {
        let all = tiny.config["rope_scaling"][format!("{part}_factor")].as_array()?;
        let all: Vec<f32> = all.iter().filter_map(Json::as_f64).map(|f| f as f32).collect();
        Some((format!("rope_factors_{part}.weight"), vec![all.len()], GgmlType::F32, le_bytes(&all)))
    });
    stacks.into_iter().map(written).chain(factors).collect()
}
