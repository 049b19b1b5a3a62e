//! Reads the keys of gated delta nets in `config.json`.

use super::{Config, Dialect, number};
use crate::error::{Error, Result};
use crate::format::Metadata;
use serde_json::Value as Json;

/// Keys that this module reads, or that are the same in all such models.
pub(super) const READ: [&str; 41] = [
    "attn_output_gate",
    "conv_kernel",
    "expand",
    "full_attention_interval",
    "expert_swiglu_limit_list",
    "gated_attention_proj_granularity_type",
    "kda_lower_bound",
    "kda_safe_gate",
    "layer_group_size",
    "linear_attn_config",
    "linear_conv_kernel_dim",
    "linear_head_dim",
    "linear_key_head_dim",
    "linear_num_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "mamba_chunk_size",
    "mamba_head_dim",
    "mamba_hidden_act",
    "mamba_num_heads",
    "mamba_conv_bias",
    "mamba_d_conv",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_expand",
    "mamba_n_groups",
    "mamba_n_heads",
    "mamba_proj_bias",
    "mamba_ssm_dtype",
    "mla_use_nope",
    "n_groups",
    "ssm_state_size",
    // These belong to a draft head, which we leave out.
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "no_kda_lora",
    "position_embedding_type",
    "share_expert_swiglu_limit_list",
    "short_conv_kernel_size",
    "time_step_limit",
    "use_grouped_topk",
];

/// The kinds of gated delta nets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta {
    /// One decay per head. Layers are such nets, except those that `layer_types` or `full_attention_interval`
    /// selects.
    Heads,
    /// One decay per value of a key.
    Channels,
    /// Mamba-2: a token adds its value instead of a correction, with one decay per head. All layers are such nets,
    /// except those that `layer_types` selects.
    Adding,
}

/// Writes the GGUF keys for dimensions, and for which layers are delta nets.
pub(super) fn layers(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    match dialect.delta {
        None => Ok(()),
        Some(Delta::Heads) => of_heads(c, dialect, m),
        Some(Delta::Channels) => of_channels(c, dialect, m),
        Some(Delta::Adding) => adding(c, dialect, m),
    }
}

/// Mamba-2, in a model whose attention has no RoPE.
fn adding(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    if c.bool("mamba_proj_bias")? == Some(true) {
        return Err(Error::unsupported("config.json: mamba_proj_bias is not supported"));
    }
    if c.str("position_embedding_type")?.is_some_and(|kind| kind == "rope") {
        return Err(Error::unsupported("config.json: position_embedding_type `rope` is not supported"));
    }
    let limits = c.get("time_step_limit").and_then(Json::as_array).into_iter().flatten();
    // Infinity is not a number in JSON.
    if limits.filter_map(Json::as_f64).any(|limit| limit != 0.0) {
        return Err(Error::unsupported("config.json: time_step_limit is not supported"));
    }
    if dialect.routed && c.u64("num_local_experts")?.unwrap_or(0) == 0 {
        // The shared expert is the dense block.
        number(m, dialect.architecture, "feed_forward_length", c.u64("shared_intermediate_size")?)?;
    }
    if c.str("mamba_hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(Error::unsupported("config.json: mamba_hidden_act other than `silu` is not supported"));
    }
    // Families have different names for these numbers.
    let number_of = |names: [&str; 2], usual: u64| -> Result<u64> {
        Ok(c.u64(names[0])?.or(c.u64(names[1])?).unwrap_or(usual))
    };
    let heads = number_of(["mamba_n_heads", "mamba_num_heads"], 128)?;
    let inner = match c.u64("mamba_head_dim")? {
        Some(dim) => heads.checked_mul(dim),
        None => c.require_u64("hidden_size")?.checked_mul(c.u64("mamba_expand")?.unwrap_or(2)),
    };
    let inner = inner.ok_or_else(|| Config::wrong("mamba_expand", "a smaller number"))?;
    for (key, value) in [
        ("ssm.conv_kernel", number_of(["mamba_d_conv", "conv_kernel"], 4)?),
        ("ssm.state_size", number_of(["mamba_d_state", "ssm_state_size"], 256)?),
        ("ssm.group_count", number_of(["mamba_n_groups", "n_groups"], 1)?),
        ("ssm.time_step_rank", heads),
        ("ssm.inner_size", inner),
    ] {
        number(m, dialect.architecture, key, Some(value))?;
    }
    // In models whose layers are one block, the numbers of key/value heads say it.
    if !dialect.one_block {
        let layers = c.require_u64("num_hidden_layers")?;
        let nets = listed(c, layers)?.unwrap_or_else(|| vec![true; layers as usize]);
        m.insert(format!("{}.attention.recurrent_layers", dialect.architecture), nets);
    }
    Ok(())
}

/// Refuses variants that no published model with such nets has, or that are not computed.
fn check_channels(c: &Config) -> Result<()> {
    let refused = |key: &str| Err(Error::unsupported(format!("config.json: this {key} is not supported")));
    for key in ["mla_use_nope", "no_kda_lora"] {
        if c.bool(key)? == Some(false) {
            return refused(key);
        }
    }
    let gates = "gated_attention_proj_granularity_type";
    if c.str(gates)?.is_some_and(|kind| kind != "head_wise") {
        return refused(gates);
    }
    let none = |v: &Json| v.is_null() || v.as_f64() == Some(0.0);
    for key in ["expert_swiglu_limit_list", "share_expert_swiglu_limit_list"] {
        if c.get(key).is_some_and(|all| !all.as_array().is_some_and(|all| all.iter().all(none))) {
            return refused(key);
        }
    }
    Ok(())
}

/// Nets with one decay per value of a key. Published configurations list the layers in an object, counted from one.
fn of_channels(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    check_channels(c)?;
    let nested = match c.get("linear_attn_config") {
        None => None,
        Some(Json::Object(of)) => Some(Config { json: of.clone() }),
        Some(_) => return Err(Config::wrong("linear_attn_config", "an object")),
    };
    let number = |inner: &str, outer: &str, last: &str| -> Result<Option<u64>> {
        let nested = nested.as_ref().map_or(Ok(None), |of| of.u64(inner))?;
        Ok(nested.or(c.u64(outer)?).or(c.u64(last)?))
    };
    let attention = c.require_u64("num_attention_heads")?;
    let heads = number("num_heads", "linear_num_heads", "num_attention_heads")?.unwrap_or(attention);
    if heads != attention {
        let what =
            format!("config.json: {heads} linear heads beside {attention} of attention are not supported");
        return Err(Error::unsupported(what));
    }
    let arch = dialect.architecture;
    // Some writers put the rotated part of attention's heads in `head_dim`, and then have the other key.
    super::number(m, arch, "kda.head_dim", number("head_dim", "linear_head_dim", "head_dim")?)?;
    let taps = number("short_conv_kernel_size", "linear_conv_kernel_dim", "short_conv_kernel_size")?;
    super::number(m, arch, "ssm.conv_kernel", Some(taps.unwrap_or(4)))?;
    if let Some(safe) = c.bool("kda_safe_gate")? {
        m.insert(format!("{arch}.kda.safe_gate"), safe);
        m.insert(format!("{arch}.kda.gate_lower_bound"), c.f64("kda_lower_bound")?.unwrap_or(-5.0) as f32);
    }
    let layers = c.require_u64("num_hidden_layers")?;
    let is_delta = match nested.as_ref().and_then(|of| of.get("full_attn_layers")) {
        Some(Json::Array(all)) => (1..=layers).map(|n| !all.iter().any(|v| v.as_u64() == Some(n))).collect(),
        Some(_) => return Err(Config::wrong("linear_attn_config", "a list of full_attn_layers")),
        None => match (listed(c, layers)?, c.u64("layer_group_size")?) {
            (Some(listed), _) => listed,
            (None, Some(group)) => (1..=layers).map(|n| !n.is_multiple_of(group.max(1))).collect(),
            (None, None) => return Err(Config::wrong("layer_types", "an array")),
        },
    };
    m.insert(format!("{arch}.attention.recurrent_layers"), is_delta);
    Ok(())
}

/// Nets with one decay per head.
fn of_heads(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    if c.bool("attn_output_gate")? == Some(false) {
        return Err(Error::unsupported("config.json: attn_output_gate false is not supported"));
    }
    let v_heads = c.require_u64("linear_num_value_heads")?;
    let values = c.require_u64("linear_value_head_dim")?.checked_mul(v_heads);
    let values = values.ok_or_else(|| Config::wrong("linear_value_head_dim", "a smaller number"))?;
    for (key, value) in [
        ("ssm.conv_kernel", c.require_u64("linear_conv_kernel_dim")?),
        ("ssm.state_size", c.require_u64("linear_key_head_dim")?),
        ("ssm.group_count", c.require_u64("linear_num_key_heads")?),
        ("ssm.time_step_rank", v_heads),
        ("ssm.inner_size", values),
    ] {
        number(m, dialect.architecture, key, Some(value))?;
    }
    // GGUF files may order value heads differently.
    m.insert("dollop.delta.tiled", false);
    let layers = c.require_u64("num_hidden_layers")?;
    let is_delta = match listed(c, layers)? {
        Some(listed) => listed,
        None => {
            let interval = c.u64("full_attention_interval")?.unwrap_or(INTERVAL).max(1);
            (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect()
        }
    };
    m.insert(format!("{}.attention.recurrent_layers", dialect.architecture), is_delta);
    Ok(())
}

/// Every n-th layer has attention, by default.
const INTERVAL: u64 = 4;

/// Which layers are delta nets, by `layer_types`.
fn listed(c: &Config, layers: u64) -> Result<Option<Vec<bool>>> {
    let is_delta = match c.get("layer_types") {
        Some(Json::Array(all)) => all.iter().map(kind).collect::<Result<Vec<bool>>>()?,
        Some(_) => return Err(Config::wrong("layer_types", "an array")),
        None => return Ok(None),
    };
    if is_delta.len() as u64 != layers {
        let what = format!("{} entries for {layers} layers", is_delta.len());
        return Err(Error::malformed("config.json: layer_types", what));
    }
    Ok(Some(is_delta))
}

/// Whether a layer of this type is a delta net.
fn kind(layer_type: &Json) -> Result<bool> {
    match layer_type.as_str() {
        Some("linear_attention" | "mamba") => Ok(true),
        Some("full_attention" | "attention") => Ok(false),
        _ => Err(Error::unsupported(format!("config.json: layer_types: {layer_type} is not supported"))),
    }
}
