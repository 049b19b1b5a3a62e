//! Tiny models with gated delta nets as llama.cpp's converter writes them (`conversion/qwen.py`): queries, keys and
//! values separate from the rest, value heads of a key head apart, norms plus one. Gate 113 compares with the converter.

use crate::gptoss::Written;
use crate::tiny::{Tiny, le_bytes};
use dollop::internal::format::{Array, GgmlType, Metadata, Value};
use std::collections::BTreeMap;

/// The keys of a GGUF file.
pub(crate) fn keys(meta: &Metadata, config: &serde_json::Value) -> Metadata {
    let arch = meta.require_str("general.architecture").expect("is there");
    let mut all = Metadata::new();
    meta.iter()
        .filter(|(key, _)| !key.starts_with("dollop."))
        .for_each(|(key, v)| all.insert(key, v.clone()));
    all.insert(format!("{arch}.full_attention_interval"), 4u32);
    if arch != "qwen3next" {
        let sections = &config["text_config"]["rope_parameters"]["mrope_section"];
        let mut sections: Vec<i32> = match sections.as_array() {
            Some(given) => given.iter().map(|n| n.as_i64().expect("a number") as i32).collect(),
            None => vec![11, 11, 10],
        };
        sections.push(0);
        let sections = sections.into_iter().map(i64::from).collect();
        all.insert(format!("{arch}.rope.dimension_sections"), Value::Array(Array::Signed(sections)));
    }
    all
}

/// The number of heads, and their width.
struct Heads {
    keys: usize,
    share: usize,
    k_dim: usize,
    v_dim: usize,
    /// Whether value heads that share a key head are apart.
    tiled: bool,
}

impl Heads {
    fn of(config: &serde_json::Value, tiled: bool) -> Heads {
        let number = |key: &str| config[key].as_u64().expect("a number") as usize;
        let keys = number("linear_num_key_heads");
        Heads {
            keys,
            share: number("linear_num_value_heads") / keys,
            k_dim: number("linear_key_head_dim"),
            v_dim: number("linear_value_head_dim"),
            tiled,
        }
    }

    /// Rows of value heads, `dim` each, in the file's order.
    fn values(&self, rows: &[f32], cols: usize, dim: usize) -> Vec<f32> {
        let head = |i: usize| match self.tiled {
            true => i % self.keys * self.share + i / self.keys,
            false => i,
        };
        let width = dim * cols;
        (0..self.keys * self.share).flat_map(|i| rows[head(i) * width..][..width].to_vec()).collect()
    }

    /// The same, after the unchanged rows of queries and keys.
    fn mixed(&self, rows: &[f32], cols: usize) -> Vec<f32> {
        let (front, values) = rows.split_at(2 * self.keys * self.k_dim * cols);
        [front, &self.values(values, cols, self.v_dim)].concat()
    }

    /// A part of the `whole` rows of each key head.
    fn part(&self, rows: &[f32], cols: usize, whole: usize, from: usize, len: usize) -> Vec<f32> {
        rows.chunks_exact(whole * cols).flat_map(|head| head[from * cols..][..len * cols].to_vec()).collect()
    }
}

/// Its tensors.
pub(crate) fn tensors(tiny: &Tiny, architecture: &str) -> Vec<Written> {
    let config =
        if tiny.config["text_config"].is_object() { &tiny.config["text_config"] } else { &tiny.config };
    let heads = Heads::of(config, architecture != "qwen3next");
    let mut all: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, (Vec<usize>, Vec<f32>)>> = BTreeMap::new();
    for (name, shape, data) in &tiny.tensors {
        let name = name.replace("model.language_model.", "model.");
        if name.starts_with("mtp.") || name.starts_with("model.visual.") {
            continue;
        }
        let (block, part) = match name.strip_prefix("model.layers.").and_then(|n| n.split_once('.')) {
            Some((layer, part)) => (format!("blk.{layer}."), part),
            None => (String::new(), name.as_str()),
        };
        if let Some((expert, part)) = part.strip_prefix("mlp.experts.").and_then(|p| p.split_once('.')) {
            let part = format!("{block}ffn_{}_exps.weight", part.split_once('_').expect("gate_proj").0);
            let expert = expert.parse().expect("a number");
            experts.entry(part).or_default().insert(expert, (shape.clone(), data.clone()));
            continue;
        }
        for (part, shape, data) in converted(part, shape, data, &heads) {
            all.insert(format!("{block}{part}"), (shape, data));
        }
    }
    for (name, of) in experts {
        let shape = [&[of.len()], &of[&0].0[..]].concat();
        all.insert(name, (shape, of.into_values().flat_map(|(_, data)| data).collect()));
    }
    let written = |(name, (shape, data)): (String, (Vec<usize>, Vec<f32>))| {
        (name, shape, GgmlType::F32, le_bytes(&data))
    };
    all.into_iter().map(written).collect()
}

/// The converted form of a tensor that belongs to no expert.
fn converted(part: &str, shape: &[usize], data: &[f32], of: &Heads) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let cols = if shape.len() == 2 { shape[1] } else { 1 };
    let one = |name: &str, data: Vec<f32>| vec![(name.to_owned(), shape.to_vec(), data)];
    let rows = |name: &str, data: Vec<f32>| (name.to_owned(), vec![data.len() / cols, cols], data);
    let plus_one = || data.iter().map(|v| v + 1.0).collect::<Vec<f32>>();
    let values = of.share * of.v_dim;
    let whole = 2 * of.k_dim + 2 * values;
    match part {
        "model.embed_tokens.weight" => one("token_embd.weight", data.to_vec()),
        "model.norm.weight" => one("output_norm.weight", plus_one()),
        "lm_head.weight" => one("output.weight", data.to_vec()),
        "input_layernorm.weight" => one("attn_norm.weight", plus_one()),
        "post_attention_layernorm.weight" => one("post_attention_norm.weight", plus_one()),
        "self_attn.q_norm.weight" => one("attn_q_norm.weight", plus_one()),
        "self_attn.k_norm.weight" => one("attn_k_norm.weight", plus_one()),
        "linear_attn.norm.weight" => one("ssm_norm.weight", data.to_vec()),
        "linear_attn.A_log" => {
            let a: Vec<f32> = data.iter().map(|v| -v.exp()).collect();
            one("ssm_a", of.values(&a, 1, 1))
        }
        "linear_attn.dt_bias" => one("ssm_dt.bias", of.values(data, 1, 1)),
        "linear_attn.conv1d.weight" => {
            let taps = shape[2];
            vec![("ssm_conv1d.weight".into(), vec![shape[0], taps], of.mixed(data, taps))]
        }
        "linear_attn.in_proj_qkv.weight" => one("attn_qkv.weight", of.mixed(data, cols)),
        "linear_attn.in_proj_z.weight" => one("attn_gate.weight", of.values(data, cols, of.v_dim)),
        "linear_attn.in_proj_a.weight" => one("ssm_alpha.weight", of.values(data, cols, 1)),
        "linear_attn.in_proj_b.weight" => one("ssm_beta.weight", of.values(data, cols, 1)),
        "linear_attn.in_proj_ba.weight" => one("ssm_ba.weight", data.to_vec()),
        "linear_attn.in_proj_qkvz.weight" => {
            let part = |from, len| of.part(data, cols, whole, from, len);
            let [q, k] = [part(0, of.k_dim), part(of.k_dim, of.k_dim)];
            let [v, z] = [part(2 * of.k_dim, values), part(2 * of.k_dim + values, values)];
            vec![rows("attn_qkv.weight", [q, k, v].concat()), rows("attn_gate.weight", z)]
        }
        "linear_attn.out_proj.weight" => {
            let row = |row: &[f32]| of.values(row, 1, of.v_dim);
            one("ssm_out.weight", data.chunks_exact(cols).flat_map(row).collect())
        }
        "mlp.experts.gate_up_proj" => {
            let [experts, rows, cols] = shape[..] else { panic!("{shape:?}") };
            let half = |which: usize| {
                let all = data.chunks_exact(rows * cols);
                all.flat_map(|e| e[which * rows / 2 * cols..][..rows / 2 * cols].to_vec()).collect()
            };
            let part = |(which, name): (usize, &str)| {
                (format!("ffn_{name}_exps.weight"), vec![experts, rows / 2, cols], half(which))
            };
            ["gate", "up"].into_iter().enumerate().map(part).collect()
        }
        "mlp.experts.down_proj" => one("ffn_down_exps.weight", data.to_vec()),
        "mlp.gate.weight" => one("ffn_gate_inp.weight", data.to_vec()),
        "mlp.shared_expert_gate.weight" => one("ffn_gate_inp_shexp.weight", data.to_vec()),
        _ => {
            let (module, leaf) = part.rsplit_once('.').expect("a module and a leaf");
            let name = match module.split_once('.').expect("two modules") {
                ("self_attn", "o_proj") => "attn_output".to_owned(),
                ("self_attn", module) => format!("attn_{}", &module[..1]),
                (_, shared) if shared.starts_with("shared_expert.") => {
                    let which = shared["shared_expert.".len()..].split_once('_').expect("gate_proj").0;
                    format!("ffn_{which}_shexp")
                }
                (_, module) => format!("ffn_{}", module.split_once('_').expect("gate_proj").0),
            };
            one(&format!("{name}.{leaf}"), data.to_vec())
        }
    }
}
