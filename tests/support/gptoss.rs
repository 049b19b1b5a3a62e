//! A tiny gpt-oss as llama.cpp's converter writes it (`conversion/gpt_oss.py`): separate experts `[out, in]`,
//! the norm before the experts under its other name, MXFP4 blocks in GGUF's order.

use crate::tiny::{Tiny, le_bytes};
use dollop::internal::format::{GgmlType, Metadata};

/// One tensor: its name, its shape (slowest first), its type and bytes.
pub(crate) type Written = (String, Vec<usize>, GgmlType, Vec<u8>);

/// The keys of a GGUF file. None defines which layers have a window, how YaRN's ramp ends, or the limit of
/// activations.
pub(crate) fn keys(meta: &Metadata) -> Metadata {
    let mut all = Metadata::new();
    meta.iter()
        .filter(|(key, _)| !key.starts_with("dollop."))
        .for_each(|(key, v)| all.insert(key, v.clone()));
    all
}

/// Its tensors.
pub(crate) fn tensors(tiny: &Tiny) -> Vec<Written> {
    let of = |name: &str| tiny.tensors.iter().find(|t| t.0 == name).map(|t| (&t.1, &t.2));
    let mut all = Vec::new();
    for (name, shape, data) in &tiny.tensors {
        let Some((block, part)) = name.split_once(".mlp.experts.") else {
            all.push((dense(name), shape.clone(), GgmlType::F32, le_bytes(data)));
            continue;
        };
        let block = block.replace("model.layers.", "blk.");
        let two = if part.starts_with("gate_up") { &["gate", "up"][..] } else { &["down"] };
        for (first, which) in two.iter().enumerate() {
            let to = |leaf: &str| format!("{block}.ffn_{which}_exps.{leaf}");
            let step = two.len();
            match part.rsplit_once('_') {
                Some((_, "scales")) => {}
                Some((base, "blocks")) => {
                    let (_, scales) =
                        of(&format!("{}.{base}_scales", name.rsplit_once('.').unwrap().0)).unwrap();
                    let [experts, rows, blocks, _] = shape[..] else { panic!("{name}: {shape:?}") };
                    let bytes = mxfp4(data, scales, experts * rows, blocks, first, step);
                    all.push((to("weight"), vec![experts, rows / step, 32 * blocks], GgmlType::MXFP4, bytes));
                }
                Some((_, "bias")) => {
                    let values: Vec<f32> = data.iter().skip(first).step_by(step).copied().collect();
                    all.push((to("bias"), vec![shape[0], shape[1] / step], GgmlType::F32, le_bytes(&values)));
                }
                _ => {
                    let [experts, cols, rows] = shape[..] else { panic!("{name}: {shape:?}") };
                    let mut values = Vec::new();
                    for e in 0..experts {
                        for r in (first..rows).step_by(step) {
                            values.extend((0..cols).map(|c| data[(e * cols + c) * rows + r]));
                        }
                    }
                    all.push((
                        to("weight"),
                        vec![experts, rows / step, cols],
                        GgmlType::F32,
                        le_bytes(&values),
                    ));
                }
            }
        }
    }
    all
}

fn dense(name: &str) -> String {
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            other => panic!("{other}"),
        }
        .into();
    };
    let (layer, part) = rest.split_once('.').unwrap();
    let mut part = part.to_owned();
    for (theirs, ours) in [
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("mlp.router", "ffn_gate_inp"),
    ] {
        part = part.replace(theirs, ours);
    }
    format!("blk.{layer}.{part}")
}

/// Every `step`-th row from `first` on, in blocks of 17 bytes: the scale, then byte `j` with values `j` and `j + 16`.
fn mxfp4(codes: &[f32], scales: &[f32], rows: usize, blocks: usize, first: usize, step: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for block in (first..rows).step_by(step).flat_map(|r| r * blocks..(r + 1) * blocks) {
        let bytes: Vec<u8> = codes[block * 16..][..16].iter().map(|&v| v as u8).collect();
        let values: Vec<u8> = bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect();
        out.push(scales[block] as u8);
        out.extend((0..16).map(|j| values[j] | values[j + 16] << 4));
    }
    out
}
