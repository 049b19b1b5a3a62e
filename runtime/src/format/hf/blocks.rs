//! Reads which block each layer is, in models whose layers are one block each: a mixer or a feed-forward block.

use super::{Config, MAX_LAYERS};
use crate::error::{Error, Result};
use crate::format::Metadata;
use serde_json::Value as Json;

/// Keys that this module reads, or that are the same in all such models.
pub(super) const READ: [&str; 20] = [
    "chunk_size",
    "hidden_dropout",
    "hybrid_override_pattern",
    "layer_norm_epsilon",
    "layers_block_type",
    "mamba_ssm_cache_dtype",
    "mlp_hidden_act",
    "moe_latent_size",
    "moe_shared_expert_overlap",
    "mtp_hybrid_override_pattern",
    "mtp_layers_block_type",
    "num_logits_to_keep",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "time_step_floor",
    "time_step_max",
    "time_step_min",
    "use_bias",
    "use_conv_bias",
    "use_mamba_kernels",
];

/// A layer's block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Delta,
    Attention,
    Experts,
    Dense,
}

/// The blocks: one letter each, or a list of names.
fn listed(c: &Config) -> Result<Vec<Block>> {
    const PATTERN: &str = "hybrid_override_pattern";
    const NAMES: &str = "layers_block_type";
    let of = |name: &str| match name {
        "M" | "mamba" | "linear_attention" => Some(Block::Delta),
        "*" | "attention" | "full_attention" => Some(Block::Attention),
        "E" | "moe" => Some(Block::Experts),
        "-" | "mlp" => Some(Block::Dense),
        _ => None,
    };
    let unknown =
        |key: &str, name: &str| Error::unsupported(format!("config.json: {key}: {name} is not supported"));
    let pattern = c.str(PATTERN)?;
    let all: Vec<Block> = match (pattern, c.get(NAMES)) {
        (Some(letters), _) => {
            let mut buffer = [0; 4];
            let block = |letter: char| {
                let letter = &*letter.encode_utf8(&mut buffer);
                of(letter).ok_or_else(|| unknown(PATTERN, letter))
            };
            letters.chars().map(block).collect::<Result<_>>()?
        }
        (None, Some(Json::Array(names))) => {
            let block =
                |name: &Json| name.as_str().and_then(of).ok_or_else(|| unknown(NAMES, &name.to_string()));
            names.iter().map(block).collect::<Result<_>>()?
        }
        _ => return Err(Config::wrong(NAMES, "an array")),
    };
    match all.len() as u64 {
        n if n > MAX_LAYERS => Err(Error::malformed(
            "config.json: layers_block_type",
            format!("{n} layers are more than {MAX_LAYERS}"),
        )),
        _ => Ok(all),
    }
}

/// Sets the number of layers, which some configurations leave out.
pub(super) fn count(c: &mut Config) -> Result<()> {
    let layers = listed(c)?.len() as u64;
    match c.u64("num_hidden_layers")? {
        Some(said) if said != layers => Err(Error::malformed(
            "config.json: num_hidden_layers",
            format!("{said}, but {layers} blocks are listed"),
        )),
        _ => {
            c.json.insert("num_hidden_layers".into(), layers.into());
            Ok(())
        }
    }
}

/// Writes the widths of feed-forward blocks and the numbers of key/value heads, by layer; 0 where there are none.
pub(super) fn keys(c: &Config, m: &mut Metadata, arch: &str) -> Result<()> {
    if c.get("moe_latent_size").is_some() {
        return Err(Error::unsupported("config.json: moe_latent_size is not supported"));
    }
    let blocks = listed(c)?;
    let wide = |block: Block, key: &str| if blocks.contains(&block) { c.require_u64(key) } else { Ok(0) };
    let (dense, experts) =
        (wide(Block::Dense, "intermediate_size")?, wide(Block::Experts, "moe_intermediate_size")?);
    let heads = c.u64("num_key_value_heads")?.map_or_else(|| c.require_u64("num_attention_heads"), Ok)?;
    let of = |number: &dyn Fn(Block) -> u64| blocks.iter().map(|&block| number(block)).collect::<Vec<u64>>();
    let widths = of(&|block| match block {
        Block::Dense => dense,
        Block::Experts => experts,
        Block::Delta | Block::Attention => 0,
    });
    m.insert(format!("{arch}.feed_forward_length"), widths);
    let heads = of(&|block| if block == Block::Attention { heads } else { 0 });
    m.insert(format!("{arch}.attention.head_count_kv"), heads);
    Ok(())
}
