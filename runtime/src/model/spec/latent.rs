//! Reads and checks the dimensions of multi-head latent attention (MLA, arXiv 2405.04434) from a file's keys.

use super::{Keys, MAX_WIDTH};
use crate::error::{Error, Result};

/// Kernels process a head's matrices in tiles of this many rows.
const TILE: usize = 16;

/// Dimensions of latent attention. The cache holds one key for all heads: a rotated part of `rope_dim` values
/// and the latent of `rank` values. The latent is the value, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentSpec {
    /// Rank of the query projection, if queries are projected in two steps. `None` if they come directly from
    /// the stream.
    pub q_rank: Option<usize>,
    /// Values of the latent.
    pub rank: usize,
    /// Values of a head's query that are not rotated; they are compared with the latent.
    pub nope_dim: usize,
    /// Values of a head's query that are rotated.
    pub rope_dim: usize,
    /// Values that a head makes from the latent.
    pub v_dim: usize,
    /// Factor on the attention scores.
    pub scale: f32,
}

impl LatentSpec {
    /// The most values that a head has before, in or after attention.
    pub fn head_width(&self) -> usize {
        self.rope_dim + self.rank.max(self.nope_dim).max(self.v_dim)
    }

    /// # Errors
    /// `Malformed`, naming the key, if a number is missing, out of range or contradicts another.
    /// `Unsupported` if the kernels cannot compute it.
    pub(super) fn read(keys: &Keys, heads: usize, d: usize) -> Result<LatentSpec> {
        let rank = keys.required("attention.kv_lora_rank", MAX_WIDTH)?;
        let rope_dim = keys.required("rope.dimension_count", MAX_WIDTH)?;
        let q_rank = keys.optional("attention.q_lora_rank", MAX_WIDTH)?.filter(|&n| n > 0);
        // Older files lack the `_mla` keys. They store the heads' own lengths under the plain names.
        let own = |name: &str| -> Result<usize> {
            match keys.optional(&format!("{name}_mla"), MAX_WIDTH)?.filter(|&n| n > 0) {
                Some(n) => Ok(n),
                None => keys.required(name, MAX_WIDTH),
            }
        };
        let (whole, v_dim) = (own("attention.key_length")?, own("attention.value_length")?);
        let nope_dim = whole.checked_sub(rope_dim).filter(|&n| n > 0).ok_or_else(|| {
            let what = format!("a key of {whole} values must be longer than its {rope_dim} rotated ones");
            Error::malformed(keys.key("attention.key_length_mla"), what)
        })?;
        for (name, n) in [("attention.kv_lora_rank", rank), ("attention.value_length_mla", v_dim)] {
            if !n.is_multiple_of(TILE) {
                let what = format!("`{}` is {n}; whole numbers of {TILE} are supported", keys.key(name));
                return Err(Error::unsupported(what));
            }
        }
        if q_rank.is_some_and(|n| n > d) {
            let what = format!("`{}` above the stream's {d}", keys.key("attention.q_lora_rank"));
            return Err(Error::unsupported(what));
        }
        if heads * (rank + whole + v_dim) > 4 * MAX_WIDTH as usize {
            let what = format!("{heads} heads of {rank}, {whole} and {v_dim} are too wide");
            return Err(Error::malformed(keys.key("attention.head_count"), what));
        }
        let stretch = stretch(keys)?;
        let scale = stretch * stretch / (whole as f32).sqrt();
        if !scale.is_finite() {
            let what = format!("the factor on scores is {scale}, which is not finite");
            return Err(Error::malformed(keys.key("rope.scaling.yarn_log_multiplier"), what));
        }
        Ok(LatentSpec { q_rank, rank, nope_dim, rope_dim, v_dim, scale })
    }
}

/// YaRN's factor on queries and on keys for a context longer than the trained one; 1 without YaRN.
fn stretch(keys: &Keys) -> Result<f32> {
    let yarn = keys.meta.str(&keys.key("rope.scaling.type"))? == Some("yarn");
    let factor = keys.positive("rope.scaling.factor")?.filter(|&f| yarn && f > 1.0);
    let all = match keys.meta.f32("dollop.rope.yarn.mscale_all_dim")? {
        Some(all) => Some(all),
        None => logarithm(keys)?,
    };
    Ok(match (factor, all) {
        (Some(factor), Some(all)) if all.is_finite() => 0.1 * all * factor.ln() + 1.0,
        _ => 1.0,
    })
}

/// The factor of YaRN's logarithm. llama.cpp stores a tenth of it.
pub(super) fn logarithm(keys: &Keys) -> Result<Option<f32>> {
    Ok(keys.f32("rope.scaling.yarn_log_multiplier")?.filter(|&v| v != 0.0).map(|v| v / 0.1))
}
