//! The numbers of attention whose keys and values are a latent (MLA, arXiv 2405.04434), as the file's keys say them.

use super::{Keys, MAX_WIDTH};
use crate::error::{Error, Result};

/// Rows of a head's matrices that kernels take together.
const TILE: usize = 16;

/// How queries, keys and values come about. The cache holds one key for all heads: a part that turns, and a latent, which is the
/// value too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentSpec {
    /// Values that queries are made of, where they are no product of the stream.
    pub q_rank: Option<usize>,
    /// Values of the latent.
    pub rank: usize,
    /// Values of a head's query that meet the latent.
    pub nope_dim: usize,
    /// Values of a head's query that turn.
    pub rope_dim: usize,
    /// Values of what a head makes of the latent.
    pub v_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

impl LatentSpec {
    /// The most values that a head has, before, in or behind attention.
    pub fn head_width(&self) -> usize {
        self.rope_dim + self.rank.max(self.nope_dim).max(self.v_dim)
    }

    /// # Errors
    /// `Malformed`, naming the key, for what is missing, out of range or contradictory; `Unsupported` for what kernels do not have.
    pub(super) fn read(keys: &Keys, heads: usize, d: usize) -> Result<LatentSpec> {
        let rank = keys.required("attention.kv_lora_rank", MAX_WIDTH)?;
        let rope_dim = keys.required("rope.dimension_count", MAX_WIDTH)?;
        let q_rank = keys.optional("attention.q_lora_rank", MAX_WIDTH)?.filter(|&n| n > 0);
        // Files from before the cache held the latent have the heads' own lengths.
        let own = |name: &str| -> Result<usize> {
            match keys.optional(&format!("{name}_mla"), MAX_WIDTH)?.filter(|&n| n > 0) {
                Some(n) => Ok(n),
                None => keys.required(name, MAX_WIDTH),
            }
        };
        let (whole, v_dim) = (own("attention.key_length")?, own("attention.value_length")?);
        let nope_dim = whole.checked_sub(rope_dim).filter(|&n| n > 0).ok_or_else(|| {
            let what = format!("{whole} values of a key, of which {rope_dim} turn");
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
            let what = format!("scores are multiplied by {scale}");
            return Err(Error::malformed(keys.key("rope.scaling.yarn_log_multiplier"), what));
        }
        Ok(LatentSpec { q_rank, rank, nope_dim, rope_dim, v_dim, scale })
    }
}

/// What a context that is longer than the trained one multiplies queries and keys with.
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

/// llama.cpp writes a tenth of it.
pub(super) fn logarithm(keys: &Keys) -> Result<Option<f32>> {
    Ok(keys.f32("rope.scaling.yarn_log_multiplier")?.filter(|&v| v != 0.0).map(|v| v / 0.1))
}
