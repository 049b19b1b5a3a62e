//! Reads and checks the router's parameters from a file's keys.

use super::{Keys, MAX_EXPERTS};
use crate::error::{Error, Result};
use crate::kernels::{Groups, MAX_GROUPS, Router, Score};
use crate::model::families::Family;

/// The router, if the model has experts, and whether experts are chosen with a bias.
pub(super) fn router(keys: &Keys, family: &Family) -> Result<(Option<Router>, bool)> {
    let experts = keys.optional("expert_count", MAX_EXPERTS)?.unwrap_or(0);
    if experts == 0 {
        return Ok((None, false));
    }
    let top_k = keys.required("expert_used_count", MAX_EXPERTS)?;
    if top_k > experts {
        return Err(Error::malformed(
            keys.key("expert_used_count"),
            format!("{top_k} experts per token out of {experts}"),
        ));
    }
    let (score, choice_bias) = score(keys, family)?;
    let router = Router {
        experts,
        top_k,
        score,
        renormalize: renormalize(keys, family)?,
        scale: match keys.f32("expert_weights_scale")? {
            // Converters write 0 if the model has no such factor.
            None | Some(0.0) => 1.0,
            Some(scale) => scale,
        },
        groups: if family.router_keys { groups(keys, experts, top_k)? } else { None },
    };
    Ok((Some(router), choice_bias))
}

/// The score function, and whether experts are chosen with a bias. GGUF has no key for the bias: when a file is
/// imported, we set our own key if it has the tensor.
fn score(keys: &Keys, family: &Family) -> Result<(Score, bool)> {
    let bias = keys.meta.bool("dollop.router.choice_bias")?;
    let said = if family.router_keys { keys.optional("expert_gating_func", u64::MAX)? } else { None };
    let score = match said {
        Some(1) => Score::Softmax,
        Some(2) => family.sigmoid(),
        // Older files have no key for the score function.
        None | Some(0) if family.router_keys && bias == Some(true) => family.sigmoid(),
        None | Some(0) => tolerant(keys, family.score)?,
        Some(other) => {
            let what = format!("{other}: 1 (softmax) and 2 (sigmoid) are supported");
            return Err(Error::unsupported(format!("`{}` is {what}", keys.key("expert_gating_func"))));
        }
    };
    let biased = match score {
        Score::Softmax => family.biased && bias == Some(true),
        Score::Sigmoid { .. } => bias.unwrap_or(true),
        Score::Mixer { .. } => false,
    };
    Ok((score, biased))
}

/// GGUF has no key for SparseMixer's tolerance, so we use our own.
fn tolerant(keys: &Keys, score: Score) -> Result<Score> {
    const KEY: &str = "dollop.router.tolerance";
    let Score::Mixer { tolerance } = score else { return Ok(score) };
    match keys.meta.f32(KEY)? {
        Some(v) if !(0.0..=1e6).contains(&v) => {
            Err(Error::malformed(KEY, format!("{v} is not between 0 and 1000000")))
        }
        said => Ok(Score::Mixer { tolerance: said.unwrap_or(tolerance) }),
    }
}

fn renormalize(keys: &Keys, family: &Family) -> Result<bool> {
    let said = match family.router_keys {
        true => keys.meta.bool(&keys.key("expert_weights_norm"))?,
        false => None,
    };
    Ok(keys.meta.bool("dollop.router.renormalize")?.or(said).unwrap_or(family.renormalize))
}

fn groups(keys: &Keys, experts: usize, top_k: usize) -> Result<Option<Groups>> {
    const COUNT: &str = "expert_group_count";
    const KEPT: &str = "expert_group_used_count";
    let count = keys.optional(COUNT, MAX_EXPERTS)?.unwrap_or(0);
    let kept = keys.optional(KEPT, MAX_EXPERTS)?.unwrap_or(0);
    if count <= 1 || kept == count {
        return Ok(None);
    }
    if count > MAX_GROUPS {
        let what = format!("`{}` is {count}; up to {MAX_GROUPS} are supported", keys.key(COUNT));
        return Err(Error::unsupported(what));
    }
    if !experts.is_multiple_of(count) {
        return Err(Error::malformed(keys.key(COUNT), format!("{count} does not divide {experts} experts")));
    }
    if kept == 0 || kept > count || kept * (experts / count) < top_k {
        let what = format!("{top_k} experts out of {kept} of {count} groups");
        return Err(Error::malformed(keys.key(KEPT), what));
    }
    Ok(Some(Groups { count, kept }))
}
