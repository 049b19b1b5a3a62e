//! Names of Hugging Face tensors, and where they lie among the canonical (GGUF) ones.

/// The place of a Hugging Face tensor among the canonical ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// GGUF name.
    pub name: String,
    /// The expert, where the tensor holds one of a stack.
    pub expert: Option<usize>,
}

/// The canonical places of a tensor: one, or two for a stacked `gate_up_proj` (gate in the first half of the rows of
/// each expert, up in the second). Empty for buffers that carry no weights; `None` for names of no known family.
pub fn places(name: &str) -> Option<Vec<Place>> {
    let one = |name: String, expert| Some(vec![Place { name, expert }]);
    match name {
        "model.embed_tokens.weight" => return one("token_embd.weight".into(), None),
        "model.norm.weight" => return one("output_norm.weight".into(), None),
        "lm_head.weight" => return one("output.weight".into(), None),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let blk = |part: &str| format!("blk.{layer}.{part}");
    let (module, leaf) = rest.rsplit_once('.')?;
    if rest.starts_with("self_attn.rotary_emb") {
        return Some(Vec::new());
    }
    let plain = match module {
        "input_layernorm" => Some("attn_norm"),
        "post_attention_layernorm" => Some("ffn_norm"),
        "self_attn.q_proj" => Some("attn_q"),
        "self_attn.k_proj" => Some("attn_k"),
        "self_attn.v_proj" => Some("attn_v"),
        "self_attn.o_proj" => Some("attn_output"),
        "self_attn.q_norm" => Some("attn_q_norm"),
        "self_attn.k_norm" => Some("attn_k_norm"),
        "mlp.gate_proj" => Some("ffn_gate"),
        "mlp.up_proj" => Some("ffn_up"),
        "mlp.down_proj" => Some("ffn_down"),
        "mlp.gate" | "block_sparse_moe.gate" => Some("ffn_gate_inp"),
        "mlp.shared_expert.gate_proj" => Some("ffn_gate_shexp"),
        "mlp.shared_expert.up_proj" => Some("ffn_up_shexp"),
        "mlp.shared_expert.down_proj" => Some("ffn_down_shexp"),
        "mlp.shared_expert_gate" => Some("ffn_gate_inp_shexp"),
        _ => None,
    };
    if let Some(part) = plain {
        return one(blk(&format!("{part}.{leaf}")), None);
    }
    let experts =
        rest.strip_prefix("mlp.experts.").or_else(|| rest.strip_prefix("block_sparse_moe.experts."))?;
    match experts {
        "gate_up_proj" => {
            let place = |part: &str| Place { name: blk(part), expert: None };
            return Some(vec![place("ffn_gate_exps.weight"), place("ffn_up_exps.weight")]);
        }
        "down_proj" => return one(blk("ffn_down_exps.weight"), None),
        _ => {}
    }
    let (expert, part) = experts.split_once('.')?;
    let part = match part {
        "gate_proj.weight" | "w1.weight" => "ffn_gate_exps.weight",
        "up_proj.weight" | "w3.weight" => "ffn_up_exps.weight",
        "down_proj.weight" | "w2.weight" => "ffn_down_exps.weight",
        _ => return None,
    };
    one(blk(part), Some(expert.parse().ok()?))
}
