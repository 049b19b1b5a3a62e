//! The model families that this version runs, one table row each. What a row does not say comes from the file.

use crate::error::{Error, Result};

/// What a family fixes that GGUF files do not state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// `general.architecture`.
    pub name: &'static str,
    /// Whether chosen gate weights are divided by their sum, unless the file says otherwise.
    pub renormalize: bool,
}

/// Every supported family. `llama` with experts is Mixtral.
pub const FAMILIES: [Family; 6] = [
    Family { name: "olmoe", renormalize: false },
    Family { name: "qwen3moe", renormalize: true },
    Family { name: "qwen2moe", renormalize: false },
    Family { name: "llama", renormalize: true },
    Family { name: "qwen2", renormalize: false },
    Family { name: "qwen3", renormalize: false },
];

impl Family {
    /// # Errors
    /// `Unsupported`, listing what is supported.
    pub fn find(architecture: &str) -> Result<Family> {
        FAMILIES.into_iter().find(|f| f.name == architecture).ok_or_else(|| {
            let names: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
            Error::unsupported(format!(
                "architecture `{architecture}` is not supported; supported are {} (`llama` with experts is Mixtral)",
                names.join(", ")
            ))
        })
    }
}

/// Tensors outside the blocks that a model may have.
const GLOBAL: [&str; 4] = ["token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"];

/// Tensors of a block, after `blk.N.`.
const BLOCK: [&str; 24] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_q.bias",
    "attn_k.weight",
    "attn_k.bias",
    "attn_v.weight",
    "attn_v.bias",
    "attn_output.weight",
    "attn_output.bias",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_exps.weight",
    "ffn_up_exps.weight",
    "ffn_down_exps.weight",
    "ffn_gate_inp_shexp.weight",
    "ffn_gate_shexp.weight",
    "ffn_up_shexp.weight",
    "ffn_down_shexp.weight",
    "attn_rot_embd.weight",
];

/// Whether the forward pass has a use for a tensor of this (canonical) name. A tensor that it would silently ignore
/// means wrong answers, so conversion refuses files that have others.
pub fn knows_tensor(name: &str) -> bool {
    if GLOBAL.contains(&name) {
        return true;
    }
    let Some((block, rest)) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')) else { return false };
    !block.is_empty() && block.bytes().all(|b| b.is_ascii_digit()) && BLOCK.contains(&rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_family_is_told_what_there_is() {
        let text = Family::find("mamba").unwrap_err().to_string();
        for family in FAMILIES {
            assert!(text.contains(family.name), "{text}");
        }
    }

    #[test]
    fn tensors_that_would_be_ignored_are_not_known() {
        assert!(knows_tensor("blk.12.ffn_up_exps.weight"));
        for name in
            ["blk.0.ffn_gate.bias", "blk..attn_q.weight", "blk.x.attn_q.weight", "v.patch_embd.weight"]
        {
            assert!(!knows_tensor(name), "{name}");
        }
    }
}
