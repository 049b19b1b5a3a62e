//! Reads DeepSeek's keys about experts in `config.json` (arXiv 2405.04434, 2412.19437): dense first layers,
//! shared experts, and expert groups.

use super::{Config, number};
use crate::error::{Error, Result};
use crate::format::value::Metadata;

/// Defaults for keys that are missing.
#[derive(Clone, Copy, Debug)]
pub struct Sparse {
    /// Sigmoid scores with a bias, instead of softmax.
    pub sigmoid: bool,
    /// Whether the chosen gates are divided by their sum; this overrides `norm_topk_prob`.
    pub renormalize: Option<bool>,
}

/// Keys that this module reads.
pub(super) const READ: [&str; 15] = [
    "aux_loss_alpha",
    "ep_size",
    "first_k_dense_replace",
    // Not needed: the tensors show which layers are dense.
    "mlp_layer_types",
    "moe_layer_freq",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_nextn_predict_layers",
    "routed_scaling_factor",
    "scoring_func",
    "seq_aux",
    "topk_group",
    "topk_method",
    "use_qk_norm",
];

/// Writes the GGUF keys about experts.
pub(super) fn keys(c: &Config, sparse: &Sparse, m: &mut Metadata, arch: &str) -> Result<()> {
    let experts = c.u64("n_routed_experts")?.or(c.u64("num_local_experts")?).filter(|&n| n > 0);
    let Some(experts) = experts else { return Ok(()) };
    let width = c.require_u64("moe_intermediate_size")?;
    let mut number = |name: &str, value| number(m, arch, name, value);
    number("expert_count", Some(experts))?;
    number("expert_used_count", Some(c.require_u64("num_experts_per_tok")?))?;
    number("expert_feed_forward_length", Some(width))?;
    number("expert_shared_count", c.u64("n_shared_experts")?)?;
    number("leading_dense_block_count", c.u64("first_k_dense_replace")?)?;
    let sigmoid = match c.str("scoring_func")? {
        None => sparse.sigmoid,
        Some("softmax") => false,
        Some("sigmoid") => true,
        Some(other) => {
            let what = format!("config.json: scoring_func `{other}`: softmax and sigmoid are supported");
            return Err(Error::unsupported(what));
        }
    };
    number("expert_gating_func", Some(if sigmoid { 2 } else { 1 }))?;
    let grouped = match c.str("topk_method")? {
        Some("greedy") => false,
        None | Some("group_limited_greedy" | "noaux_tc") => true,
        Some(other) => {
            let what = format!("config.json: topk_method `{other}` is not supported");
            return Err(Error::unsupported(what));
        }
    };
    if grouped {
        number("expert_group_count", c.u64("n_group")?)?;
        number("expert_group_used_count", c.u64("topk_group")?)?;
    }
    if let Some(scale) = c.f64("routed_scaling_factor")? {
        m.insert(format!("{arch}.expert_weights_scale"), scale as f32);
    }
    let renormalize = sparse.renormalize.or(c.bool("norm_topk_prob")?).unwrap_or(sigmoid);
    m.insert(format!("{arch}.expert_weights_norm"), renormalize);
    m.insert("dollop.router.choice_bias", sigmoid);
    Ok(())
}
