//! Reads the keys of LFM2 models in `config.json`: short convolutions, block widths, and routers.

use super::{Config, number};
use crate::error::{Error, Result};
use crate::format::value::Metadata;
use serde_json::Value as Json;

/// Keys that this module reads.
pub(super) const READ: [&str; 16] = [
    "block_auto_adjust_ff_dim",
    "block_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
    "conv_L_cache",
    "conv_bias",
    "conv_dim",
    "conv_dim_out",
    "conv_use_xavier_init",
    "full_attn_idxs",
    "norm_eps",
    "num_dense_layers",
    "num_heads",
    "routed_scaling_factor",
    "tie_embedding",
    "use_expert_bias",
];

/// Writes the GGUF keys for the kinds of layers, widths and routers.
pub(super) fn keys(c: &Config, m: &mut Metadata, arch: &str) -> Result<()> {
    let mut number = |name: &str, value| number(m, arch, name, value);
    number("shortconv.l_cache", Some(c.u64("conv_L_cache")?.unwrap_or(3)))?;
    number("leading_dense_block_count", c.u64("num_dense_layers")?)?;
    number("feed_forward_length", feed_forward(c)?)?;
    let layers = c.require_u64("num_hidden_layers")?;
    let kv_heads = c.u64("num_key_value_heads")?.unwrap_or(c.require_u64("num_attention_heads")?);
    let attends = attends(c, layers)?;
    let all: Vec<u64> = attends.into_iter().map(|attends| if attends { kv_heads } else { 0 }).collect();
    m.insert(format!("{arch}.attention.head_count_kv"), all);
    if c.u64("num_experts")?.is_some() {
        if let Some(scale) = c.f64("routed_scaling_factor")? {
            m.insert(format!("{arch}.expert_weights_scale"), scale as f32);
        }
        m.insert("dollop.router.choice_bias", c.bool("use_expert_bias")?.unwrap_or(true));
    }
    Ok(())
}

/// Which layers have attention: by `layer_types`, or in old files by `full_attn_idxs`; otherwise all.
fn attends(c: &Config, layers: u64) -> Result<Vec<bool>> {
    let list = |key| match c.get(key) {
        None => Ok(None),
        Some(Json::Array(all)) => Ok(Some(all)),
        Some(_) => Err(Config::wrong(key, "an array")),
    };
    if let Some(kinds) = list("layer_types")? {
        if kinds.len() as u64 != layers {
            return Err(Config::wrong("layer_types", "an entry for every layer"));
        }
        let kind = |kind: &Json| match kind.as_str() {
            Some("full_attention") => Ok(true),
            Some("conv") => Ok(false),
            _ => Err(Error::unsupported(format!(
                "config.json: layer_types has {kind}; `conv` and `full_attention` are supported"
            ))),
        };
        return kinds.iter().map(kind).collect();
    }
    let Some(listed) = list("full_attn_idxs")? else { return Ok(vec![true; layers as usize]) };
    Ok((0..layers).map(|layer| listed.iter().any(|n| n.as_u64() == Some(layer))).collect())
}

/// The width of dense blocks. If the file says so, it is two thirds of the given width, times a factor,
/// rounded up to a multiple.
fn feed_forward(c: &Config) -> Result<Option<u64>> {
    let Some(width) = c.u64("block_ff_dim")?.or(c.u64("intermediate_size")?) else { return Ok(None) };
    // Models with experts have none of these keys, and use the width as it is.
    let adjusts = c.bool("block_auto_adjust_ff_dim")?.unwrap_or(c.u64("num_experts")?.is_none());
    if !adjusts {
        return Ok(Some(width));
    }
    let factor = c.f64("block_ffn_dim_multiplier")?.unwrap_or(1.0);
    let multiple = c.u64("block_multiple_of")?.unwrap_or(256);
    // Both conversions truncate, as Python's `int` does.
    let width = (2.0 * width as f64 / 3.0) as u64;
    let width = (factor * width as f64) as u64;
    let rounded = width.checked_next_multiple_of(multiple);
    rounded.map(Some).ok_or_else(|| Config::wrong("block_multiple_of", "a number above zero"))
}
