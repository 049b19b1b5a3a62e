//! Reads the keys of multi-head latent attention (MLA, arXiv 2405.04434) in `config.json`.

use super::{Config, number};
use crate::error::Result;
use crate::format::value::Metadata;

/// Keys that this module reads.
pub(super) const READ: [&str; 8] = [
    "kv_lora_rank",
    "q_lora_rank",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rope_interleave",
    "router_dtype",
    "v_head_dim",
];

/// Writes the GGUF keys for the dimensions of heads and latent.
pub(super) fn keys(c: &Config, m: &mut Metadata, arch: &str) -> Result<()> {
    let (rank, rope) = (c.require_u64("kv_lora_rank")?, c.require_u64("qk_rope_head_dim")?);
    let (nope, value) = (c.require_u64("qk_nope_head_dim")?, c.require_u64("v_head_dim")?);
    let mut number = |name: &str, value| number(m, arch, name, value);
    // All heads share one key and one value.
    number("attention.head_count_kv", Some(1))?;
    number("attention.kv_lora_rank", Some(rank))?;
    number("attention.q_lora_rank", c.u64("q_lora_rank")?)?;
    number("attention.key_length", Some(rank.saturating_add(rope)))?;
    number("attention.value_length", Some(rank))?;
    number("attention.key_length_mla", Some(nope.saturating_add(rope)))?;
    number("attention.value_length_mla", Some(value))?;
    number("rope.dimension_count", Some(rope))?;
    m.insert("dollop.rope.pairs", c.bool("rope_interleave")?.unwrap_or(true));
    Ok(())
}
