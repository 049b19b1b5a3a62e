//! Reads the keys of gated delta nets in `config.json`.

use super::{Config, Dialect, number};
use crate::error::{Error, Result};
use crate::format::Metadata;
use serde_json::Value as Json;

/// Keys that this module reads, or that are the same in all such models.
pub(super) const READ: [&str; 10] = [
    "attn_output_gate",
    "full_attention_interval",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "mamba_ssm_dtype",
    // These belong to a draft head, which we leave out.
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
];

/// Writes the GGUF keys for dimensions, and for which layers are delta nets.
pub(super) fn layers(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    if !dialect.delta {
        return Ok(());
    }
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
    let is_delta = match c.get("layer_types") {
        Some(Json::Array(all)) => all.iter().map(kind).collect::<Result<Vec<bool>>>()?,
        Some(_) => return Err(Config::wrong("layer_types", "an array")),
        None => {
            let interval = c.u64("full_attention_interval")?.unwrap_or(INTERVAL).max(1);
            (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect()
        }
    };
    if is_delta.len() as u64 != layers {
        let what = format!("{} entries for {layers} layers", is_delta.len());
        return Err(Error::malformed("config.json: layer_types", what));
    }
    m.insert(format!("{}.attention.recurrent_layers", dialect.architecture), is_delta);
    Ok(())
}

/// Every n-th layer has attention, by default.
const INTERVAL: u64 = 4;

/// Whether a layer of this type is a delta net.
fn kind(layer_type: &Json) -> Result<bool> {
    match layer_type.as_str() {
        Some("linear_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(Error::unsupported(format!("config.json: layer_types: {layer_type} is not supported"))),
    }
}
