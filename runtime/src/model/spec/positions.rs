//! Reads from a file's keys which layers have a sliding window, and the parameters of their rotary
//! embeddings.

use super::latent::logarithm;
use super::{Keys, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH};
use crate::error::{Error, Result};
use crate::format::Value;
use crate::model::families::{Family, Windows};
use crate::model::rope::{RopeConfig, Scaling};

/// No rotation: all frequencies are zero.
const STILL: Scaling = Scaling::Proportional { part: 0.0 };

/// Our key for LongRoPE's factors.
const FACTORS: &str = "dollop.rope.factors";

/// A factor on cosines and sines.
const GAIN: &str = "rope.scaling.attn_factor";

/// The rotary embedding of full-attention layers, and that of window layers if the family has a second one.
pub(super) fn ropes(
    keys: &Keys,
    family: &Family,
    [full, local]: [usize; 2],
    (context, windows): (usize, &[Option<usize>]),
) -> Result<Vec<RopeConfig>> {
    let base = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    let dims = rope_dims(keys, "rope.dimension_count", full)?;
    let scaling = if family.rotates { scaling(keys, family, context)? } else { STILL };
    if let Scaling::Listed { factors, .. } = &scaling
        && !factors.is_empty()
        && factors.len() != dims / 2
    {
        return Err(Error::malformed(
            FACTORS,
            format!("{} factors for {} frequencies", factors.len(), dims / 2),
        ));
    }
    let full = RopeConfig { dims, base, scaling };
    let everywhere = family.rope_without_windows && windows.iter().all(Option::is_none);
    if family.rope_in_windows && !everywhere {
        return Ok(vec![RopeConfig { dims, base, scaling: STILL }, full]);
    }
    let Some(base) = family.window_rope_base else { return Ok(vec![full]) };
    // Context scaling applies to full-attention layers only.
    let base = keys.positive("rope.freq_base_swa")?.unwrap_or(base);
    let dims = rope_dims(keys, "rope.dimension_count_swa", local)?;
    Ok(vec![full, RopeConfig { dims, base, scaling: Scaling::None }])
}

/// The longest context that the frequencies allow: with factors of LongRoPE, that before the extension.
pub(super) fn offered(keys: &Keys, ropes: &[RopeConfig], context: usize) -> Result<usize> {
    let listed = ropes.iter().any(|rope| matches!(rope.scaling, Scaling::Listed { .. }));
    let trained = if listed { keys.positive("rope.scaling.original_context_length")? } else { None };
    Ok(trained.map_or(context, |n| (n as usize).clamp(1, context)))
}

/// LongRoPE's factors of frequencies, and the factor on cosines and sines.
fn listed(keys: &Keys) -> Result<Scaling> {
    let factors = keys.meta.f32s(FACTORS)?.map(<[f32]>::to_vec).unwrap_or_default();
    if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        return Err(Error::malformed(FACTORS, "a factor is not a number above zero"));
    }
    Ok(Scaling::Listed { factors, gain: keys.positive(GAIN)?.unwrap_or(1.0) })
}

/// Rotated dimensions of a head.
fn rope_dims(keys: &Keys, name: &str, head_dim: usize) -> Result<usize> {
    let dims = keys.optional(name, MAX_WIDTH)?.unwrap_or(head_dim);
    if dims == 0 || dims % 2 != 0 || dims > head_dim {
        let what = format!("{dims}: it must be even and at most the head's {head_dim}");
        return Err(Error::malformed(keys.key(name), what));
    }
    Ok(dims)
}

/// The sliding window of each layer; `None` for full attention.
pub(super) fn windows(keys: &Keys, family: &Family, layers: usize) -> Result<Vec<Option<usize>>> {
    const LAYERS: &str = "dollop.attention.window_layers";
    let window = keys.optional("attention.sliding_window", MAX_CONTEXT)?.filter(|&w| w > 0);
    let listed = match keys.meta.bools(LAYERS)? {
        None => pattern(keys, layers)?,
        Some(listed) => Some(listed.to_vec()),
    };
    let on: Vec<bool> = match (listed, family.windows) {
        (Some(listed), _) if listed.len() != layers => {
            return Err(Error::malformed(LAYERS, format!("{} entries for {layers} layers", listed.len())));
        }
        (Some(listed), _) => listed,
        (None, Windows::All) => vec![true; layers],
        (None, Windows::Even) => (0..layers).map(|layer| layer.is_multiple_of(2)).collect(),
        (None, Windows::AllButFirst(nth)) => (0..layers).map(|layer| !layer.is_multiple_of(nth)).collect(),
        (None, Windows::AllBut(nth)) => (1..=layers).map(|layer| !layer.is_multiple_of(nth)).collect(),
        // Guessing the layers would give wrong results without an error.
        (None, Windows::Listed) if window.is_some() => {
            let key = keys.key("attention.sliding_window");
            let what = format!("`{key}` is set, but no key says which layers use the window");
            return Err(Error::unsupported(what));
        }
        (None, Windows::Listed) => vec![false; layers],
    };
    Ok(on.into_iter().map(|on| window.filter(|_| on)).collect())
}

/// Reads llama.cpp's key for window layers: a list, or a number n that leaves every n-th layer without a
/// window.
fn pattern(keys: &Keys, layers: usize) -> Result<Option<Vec<bool>>> {
    const NAME: &str = "attention.sliding_window_pattern";
    if keys.meta.get(&keys.key(NAME)).is_none_or(|value| matches!(value, Value::Array(_))) {
        return Ok(keys.meta.bools(&keys.key(NAME))?.map(<[bool]>::to_vec));
    }
    let nth = keys.optional(NAME, MAX_LAYERS)?.unwrap_or(0);
    Ok(Some((1..=layers).map(|layer| !layer.is_multiple_of(nth)).collect()))
}

/// YaRN's `ext_factor`. llama.cpp writes −1 for the default of 1.
fn extrapolation(keys: &Keys) -> Result<f32> {
    match keys.f32("rope.scaling.yarn_ext_factor")? {
        None => Ok(1.0),
        Some(v) if v < 0.0 => Ok(1.0),
        Some(v) if v <= 1.0 => Ok(v),
        Some(v) => {
            let what = format!("{v}: it must be between 0 and 1");
            Err(Error::malformed(keys.key("rope.scaling.yarn_ext_factor"), what))
        }
    }
}

fn scaling(keys: &Keys, family: &Family, context: usize) -> Result<Scaling> {
    if keys.meta.f32("dollop.rope.llama3.factor")?.is_some() {
        let get = |name: &str| -> Result<f32> {
            let key = format!("dollop.rope.llama3.{name}");
            match keys.meta.f32(&key)? {
                Some(v) if v.is_finite() && v > 0.0 => Ok(v),
                Some(v) => Err(Error::malformed(key, format!("{v} must be a number above zero"))),
                None => Err(Error::malformed(key, "the key is missing")),
            }
        };
        let (low, high) = (get("low_freq_factor")?, get("high_freq_factor")?);
        if high <= low {
            return Err(Error::malformed(
                "dollop.rope.llama3.high_freq_factor",
                "must be above low_freq_factor",
            ));
        }
        return Ok(Scaling::Llama3 {
            factor: get("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: get("original_context_length")?,
        });
    }
    const PART: &str = "dollop.rope.proportional";
    match keys.meta.f32(PART)? {
        Some(part) if part > 0.0 && part <= 1.0 => return Ok(Scaling::Proportional { part }),
        Some(part) => return Err(Error::malformed(PART, format!("{part} must be above 0 and up to 1"))),
        None => {}
    }
    // Older files have `rope.scale_linear` instead of `rope.scaling.*`.
    let old_linear = keys.positive("rope.scale_linear")?;
    let kind = match keys.meta.str(&keys.key("rope.scaling.type"))? {
        Some(kind) => kind,
        None if old_linear.is_some() => "linear",
        None => "none",
    };
    let factor = keys.positive("rope.scaling.factor")?.or(old_linear);
    let need = |value: Option<f32>| {
        value.ok_or_else(|| Error::malformed(keys.key("rope.scaling.factor"), "the key is missing"))
    };
    let sharp = if family.latent { logarithm(keys)? } else { None };
    match kind {
        "longrope" => listed(keys),
        // The key for the kind is missing in these files.
        "none" if family.long_rope && keys.positive(GAIN)?.is_some() => listed(keys),
        "none" | "default" | "" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: need(factor)? }),
        "yarn" => Ok(Scaling::Yarn {
            factor: need(factor)?,
            original_context: keys
                .positive("rope.scaling.original_context_length")?
                .unwrap_or(context as f32),
            beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: keys.meta.f32("dollop.rope.yarn.attention_factor")?,
            // Latent attention already has this factor in its scores. Setting both numbers to it cancels it
            // in the table.
            mscale: keys.meta.f32("dollop.rope.yarn.mscale")?.or(sharp),
            mscale_all_dim: keys.meta.f32("dollop.rope.yarn.mscale_all_dim")?.or(sharp),
            truncate: keys.meta.bool("dollop.rope.yarn.truncate")?.unwrap_or(family.yarn_truncate),
            gain: keys.positive("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0)
                * keys.positive(GAIN)?.unwrap_or(1.0),
            extrapolation: extrapolation(keys)?,
        }),
        other => Err(Error::unsupported(format!(
            "rope scaling `{other}` is not supported; supported are none, linear, llama3 and yarn"
        ))),
    }
}
