//! Reads DeepSeek's keys about experts in `config.json` (arXiv 2405.04434, 2412.19437): dense first layers,
//! shared experts, and expert groups. Other families have other names for some.

use super::{Config, number};
use crate::error::{Error, Result};
use crate::format::value::Metadata;

/// Defaults for keys that are missing.
#[derive(Clone, Copy, Debug)]
pub struct Sparse {
    /// Sigmoid scores, instead of softmax.
    pub sigmoid: bool,
    /// Whether experts are chosen with a bias; `None` if they are with sigmoid scores.
    pub biased: Option<bool>,
    /// Whether the chosen gates are divided by their sum; this overrides `norm_topk_prob`.
    pub renormalize: Option<bool>,
}

impl Sparse {
    /// Sigmoid scores with a bias.
    pub const SIGMOID: Sparse = Sparse { sigmoid: true, biased: None, renormalize: None };
}

/// Keys that this module reads.
pub(super) const READ: [&str; 43] = [
    "aux_loss_alpha",
    "ep_size",
    "first_k_dense_replace",
    // Not needed: the tensors show which layers are dense.
    "mlp_layer_types",
    "moe_apply_router_weight_on_input",
    "moe_enable_early_router",
    "moe_k",
    // Not needed: the tensors show which layers are dense.
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_layer_start_index",
    // A limit that no sum of gates is below.
    "moe_norm_min",
    "moe_num_experts",
    "moe_num_shared_experts",
    "moe_primary_router_apply_softmax",
    "moe_renormalize",
    "moe_router_activation_func",
    // Not needed: the tensors show whether there is a bias.
    "moe_router_enable_expert_bias",
    "moe_router_logit_softcapping",
    "moe_shared_expert_intermediate_size",
    "moe_topk",
    "moe_layer_freq",
    "mtp_loss_scaling_factor",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_dense_layers",
    "num_expert_group",
    "num_experts_per_token",
    "num_nextn_predict_layers",
    "num_shared_expert",
    "num_shared_experts",
    "qk_norm_type",
    "route_scale",
    "routed_scaling_factor",
    "score_func",
    "score_function",
    "scoring_func",
    "seq_aux",
    "topk_group",
    "topk_method",
    "use_mixed_mlp_moe",
    "use_qk_norm",
    "use_routing_bias",
];

/// Names of the numbers of routed experts, of shared ones, of those per token, of groups and of dense first layers.
const EXPERTS: [&str; 4] = ["n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"];
const SHARED: [&str; 4] =
    ["n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"];
const TOP_K: [&str; 4] = ["num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"];
const GROUPS: [&str; 2] = ["n_group", "num_expert_group"];
const DENSE: [&str; 3] = ["first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"];

/// The number under the first of these names that is present. Some configurations list it for every layer.
fn first(c: &Config, names: &[&str]) -> Result<Option<u64>> {
    let Some(name) = names.iter().find(|name| c.get(name).is_some()) else { return Ok(None) };
    let Some(listed) = c.get(name).and_then(|value| value.as_array()) else { return c.u64(name) };
    match listed.first().and_then(|n| n.as_u64()) {
        Some(n) if listed.iter().all(|other| other.as_u64() == Some(n)) => Ok(Some(n)),
        _ => Err(Config::wrong(name, "a number, or a list of equal numbers,")),
    }
}

/// Names of the score function.
const SCORES: [&str; 4] = ["scoring_func", "score_function", "score_func", "moe_router_activation_func"];

/// Writes the GGUF keys about experts.
pub(super) fn keys(c: &Config, sparse: &Sparse, m: &mut Metadata, arch: &str) -> Result<()> {
    let Some(experts) = first(c, &EXPERTS)?.filter(|&n| n > 0) else { return Ok(()) };
    let missing = |name: &str| Error::malformed(format!("config.json: {name}"), "the key is missing");
    let width = first(c, &["moe_intermediate_size", "intermediate_size"])?;
    let width = width.ok_or_else(|| missing("moe_intermediate_size"))?;
    let top_k = first(c, &TOP_K)?.ok_or_else(|| missing(TOP_K[0]))?;
    let mut number = |name: &str, value| number(m, arch, name, value);
    number("expert_count", Some(experts))?;
    number("expert_used_count", Some(top_k))?;
    number("expert_feed_forward_length", Some(width))?;
    number("expert_shared_feed_forward_length", c.u64("moe_shared_expert_intermediate_size")?)?;
    number("expert_shared_count", first(c, &SHARED)?)?;
    number("leading_dense_block_count", first(c, &DENSE)?)?;
    let score = SCORES.iter().find(|name| c.get(name).is_some()).map_or(Ok(None), |name| c.str(name))?;
    let sigmoid = match score {
        None => match c.bool("moe_primary_router_apply_softmax")? {
            Some(softmax) => !softmax,
            None => sparse.sigmoid,
        },
        Some("softmax") => false,
        Some("sigmoid" | "noaux_tc") => true,
        Some(other) => {
            let what = format!("config.json: scoring_func `{other}`: softmax and sigmoid are supported");
            return Err(Error::unsupported(what));
        }
    };
    number("expert_gating_func", Some(if sigmoid { 2 } else { 1 }))?;
    if c.bool("moe_enable_early_router")? == Some(false) {
        return Err(Error::unsupported("config.json: moe_enable_early_router must be true"));
    }
    let capped = c.f64("moe_router_logit_softcapping")?.is_some_and(|cap| cap != 0.0);
    if capped || c.bool("moe_apply_router_weight_on_input")? == Some(true) {
        let what = "moe_router_logit_softcapping and moe_apply_router_weight_on_input are not supported";
        return Err(Error::unsupported(format!("config.json: {what}")));
    }
    let grouped = match c.str("topk_method")? {
        Some("greedy") => false,
        None | Some("group_limited_greedy" | "noaux_tc") => true,
        Some(other) => {
            let what = format!("config.json: topk_method `{other}` is not supported");
            return Err(Error::unsupported(what));
        }
    };
    if grouped {
        number("expert_group_count", first(c, &GROUPS)?)?;
        number("expert_group_used_count", c.u64("topk_group")?)?;
    }
    if let Some(scale) = c.f64("routed_scaling_factor")?.or(c.f64("route_scale")?) {
        m.insert(format!("{arch}.expert_weights_scale"), scale as f32);
    }
    let named = c.bool("norm_topk_prob")?.or(c.bool("moe_renormalize")?);
    let renormalize = sparse.renormalize.or(named).unwrap_or(sigmoid);
    m.insert(format!("{arch}.expert_weights_norm"), renormalize);
    m.insert("dollop.router.choice_bias", sparse.biased.unwrap_or(sigmoid));
    Ok(())
}
