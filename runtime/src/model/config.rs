//! The numbers of a model, read from GGUF keys and checked against each other. Knows no weights.

use super::arch::Family;
use super::keys;
use super::rope::{RopeConfig, Scaling};
use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::kernels::Router;

/// Bounds on what a file may claim, far above any real model and far below what would overflow or exhaust memory.
const MAX_LAYERS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 17;
const MAX_HEADS: u64 = 4096;
const MAX_EXPERTS: u64 = 4096;
const MAX_CONTEXT: u64 = 1 << 24;

/// A model's hyper-parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The table row of the architecture.
    pub family: Family,
    /// `general.name`, or the architecture's.
    pub name: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Longest context the model was made for, in tokens.
    pub context: usize,
    /// In every RMS norm.
    pub norm_eps: f32,
    /// Limit on queries, keys and values before rotation.
    pub clip_qkv: Option<f32>,
    /// Sliding window of each layer.
    pub windows: Vec<Option<usize>>,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Routing, where the model has experts.
    pub router: Option<Router>,
}

/// Reads `<arch>.key` and checks its range.
struct Keys<'a> {
    meta: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn optional(&self, name: &str, max: u64) -> Result<Option<usize>> {
        let key = self.key(name);
        match self.meta.u64(&key)? {
            Some(v) if v > max => {
                Err(Error::malformed(key, format!("{v} is more than the {max} that are supported")))
            }
            other => Ok(other.map(|v| v as usize)),
        }
    }

    fn required(&self, name: &str, max: u64) -> Result<usize> {
        match self.optional(name, max)? {
            Some(0) => Err(Error::malformed(self.key(name), "must not be zero")),
            Some(v) => Ok(v),
            None => Err(Error::malformed(self.key(name), "the key is missing")),
        }
    }

    fn f32(&self, name: &str) -> Result<Option<f32>> {
        let key = self.key(name);
        match self.meta.f32(&key)? {
            Some(v) if !v.is_finite() => Err(Error::malformed(key, format!("{v} is not a finite number"))),
            other => Ok(other),
        }
    }

    fn positive(&self, name: &str) -> Result<Option<f32>> {
        match self.f32(name)? {
            Some(v) if v <= 0.0 => Err(Error::malformed(self.key(name), format!("{v} must be above zero"))),
            other => Ok(other),
        }
    }
}

impl Config {
    /// # Errors
    /// `Unsupported` for an unknown architecture or rope scaling; `Malformed`, naming the key, for what is missing,
    /// out of range or contradictory.
    pub fn from_metadata(meta: &Metadata) -> Result<Config> {
        let family = Family::find(meta.require_str("general.architecture")?)?;
        let keys = Keys { meta, arch: family.name };
        let layers = keys.required("block_count", MAX_LAYERS)?;
        let d = keys.required("embedding_length", MAX_WIDTH)?;
        let heads = keys.required("attention.head_count", MAX_HEADS)?;
        let kv_heads = keys.optional("attention.head_count_kv", MAX_HEADS)?.unwrap_or(heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::malformed(
                keys.key("attention.head_count_kv"),
                format!("{kv_heads} key/value heads do not divide {heads} heads"),
            ));
        }
        let head_dim = match keys.optional("attention.key_length", MAX_WIDTH)? {
            Some(0) | None if d % heads == 0 => d / heads,
            Some(0) | None => {
                return Err(Error::malformed(
                    keys.key("attention.head_count"),
                    format!("{heads} heads do not divide {d}"),
                ));
            }
            Some(n) => n,
        };
        if keys.optional("attention.value_length", MAX_WIDTH)?.is_some_and(|v| v != head_dim) {
            return Err(Error::unsupported(
                "values of another length than keys (`attention.value_length`) are not supported",
            ));
        }
        if heads * head_dim > MAX_WIDTH as usize {
            return Err(Error::malformed(
                keys.key("attention.key_length"),
                format!("{heads} heads of {head_dim} are too wide"),
            ));
        }
        keys::check(meta, family, head_dim)?;
        let context = keys.required("context_length", MAX_CONTEXT)?;
        let norm_eps = keys.positive("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            Error::malformed(keys.key("attention.layer_norm_rms_epsilon"), "the key is missing")
        })?;
        let dims = keys.optional("rope.dimension_count", MAX_WIDTH)?.unwrap_or(head_dim);
        if dims == 0 || dims % 2 != 0 || dims > head_dim {
            return Err(Error::malformed(
                keys.key("rope.dimension_count"),
                format!("{dims}: it must be even and at most the head's {head_dim}"),
            ));
        }
        let rope = RopeConfig {
            dims,
            base: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: scaling(&keys, context)?,
        };
        Ok(Config {
            family,
            name: meta.str("general.name")?.unwrap_or(family.name).to_owned(),
            layers,
            d,
            heads,
            kv_heads,
            head_dim,
            context,
            norm_eps,
            clip_qkv: keys.positive("attention.clamp_kqv")?,
            windows: windows(&keys, layers)?,
            rope,
            router: router(&keys)?,
        })
    }

    /// Values of keys (and as many of values) that one token adds to each layer's cache.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

fn router(keys: &Keys) -> Result<Option<Router>> {
    let experts = keys.optional("expert_count", MAX_EXPERTS)?.unwrap_or(0);
    if experts == 0 {
        return Ok(None);
    }
    let top_k = keys.required("expert_used_count", MAX_EXPERTS)?;
    if top_k > experts {
        return Err(Error::malformed(
            keys.key("expert_used_count"),
            format!("{top_k} experts per token out of {experts}"),
        ));
    }
    let family = Family::find(keys.arch)?;
    Ok(Some(Router {
        experts,
        top_k,
        renormalize: keys.meta.bool("dollop.router.renormalize")?.unwrap_or(family.renormalize),
        scale: match keys.f32("expert_weights_scale")? {
            // Written as 0 by converters that have no such number.
            None | Some(0.0) => 1.0,
            Some(scale) => scale,
        },
    }))
}

fn windows(keys: &Keys, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.optional("attention.sliding_window", MAX_CONTEXT)?.filter(|&w| w > 0);
    let which = keys.meta.bools("dollop.attention.window_layers")?;
    match which {
        Some(which) if which.len() != layers => Err(Error::malformed(
            "dollop.attention.window_layers",
            format!("{} entries for {layers} layers", which.len()),
        )),
        Some(which) => Ok(which.iter().map(|&on| window.filter(|_| on)).collect()),
        None => Ok(vec![window; layers]),
    }
}

/// llama.cpp writes −1 for "as usual".
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

fn scaling(keys: &Keys, context: usize) -> Result<Scaling> {
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
    // Files from before `rope.scaling.*` have the linear factor alone.
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
    match kind {
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
            mscale: keys.meta.f32("dollop.rope.yarn.mscale")?,
            mscale_all_dim: keys.meta.f32("dollop.rope.yarn.mscale_all_dim")?,
            truncate: keys.meta.bool("dollop.rope.yarn.truncate")?.unwrap_or(true),
            gain: keys.positive("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0)
                * keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            extrapolation: extrapolation(keys)?,
        }),
        other => Err(Error::unsupported(format!(
            "rope scaling `{other}` is not supported; supported are none, linear, llama3 and yarn"
        ))),
    }
}
