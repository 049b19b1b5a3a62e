//! The specification of a model: what each layer computes. It is resolved and checked once, from the file's
//! keys and the model family; it knows no weights.

mod blocks;
mod delta;
mod latent;
mod positions;
mod router;

use super::families::{Family, Heads};
use super::keys;
use super::rope::RopeConfig;
use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::kernels::{Activation, RopeTable, Router, Uses};
use blocks::{feed_forwards, heads, kv_heads, kv_sources, layers};
pub use delta::DeltaSpec;
pub use latent::LatentSpec;
use positions::windows;
use router::router;

/// Upper limits on a file's numbers: far above any real model, and low enough that nothing overflows or
/// exhausts memory.
const MAX_LAYERS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 17;
const MAX_HEADS: u64 = 4096;
const MAX_EXPERTS: u64 = 4096;
const MAX_CONTEXT: u64 = 1 << 24;
const MAX_TAPS: u64 = 64;

/// A model's specification.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The model's family.
    pub family: &'static Family,
    /// `general.name`, or the architecture's name if the file has none.
    pub name: String,
    /// Width of the residual stream.
    pub d: usize,
    /// Longest context that the model was trained for, in tokens.
    pub context: usize,
    /// Epsilon of RMS norms, but those of the stream.
    pub norm_eps: f32,
    /// Epsilon of norms of the stream. A model whose residuals have a factor `m` keeps the stream divided by `m`,
    /// and this epsilon by `m²`: so every block adds its output as it is.
    pub stream_eps: f32,
    /// Rotary embeddings: first that of full-attention layers, then that of window layers if it differs.
    pub ropes: Vec<RopeConfig>,
    /// Factor on embeddings.
    pub embed_scale: f32,
    /// Divisor of logits.
    pub logit_divisor: f32,
    /// Values of the extra per-layer input of each token; 0 if the model has none.
    pub per_layer: usize,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Transformer blocks, in order.
    pub layers: Vec<LayerSpec>,
}

/// What one layer computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// How the layer mixes tokens.
    pub mixer: MixerSpec,
    /// A feed-forward block or experts.
    pub ffn: FfnSpec,
    /// Whether the layer has a feed-forward block or experts at all.
    pub feeds: bool,
    /// Whether mixer and feed-forward read the normed stream.
    pub pre_norms: bool,
    /// Whether these norms are layer norms, with biases.
    pub layer_norms: bool,
    /// Whether the outputs of mixer and feed-forward are normed before they are added.
    pub sandwich: bool,
    /// Whether the layer's output may be multiplied by a stored number.
    pub scaled: bool,
}

/// How a layer mixes tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MixerSpec {
    /// Attention.
    Attention(AttentionSpec),
    /// A gated short convolution.
    Conv {
        /// Tokens that the convolution sees, including the current one.
        taps: usize,
    },
    /// A gated delta net.
    Delta(DeltaSpec),
    /// Nothing: the layer is a feed-forward block.
    Nothing,
}

impl LayerSpec {
    /// The attention, if this layer has it.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            MixerSpec::Attention(a) => Some(a),
            MixerSpec::Conv { .. } | MixerSpec::Delta(_) | MixerSpec::Nothing => None,
        }
    }

    /// Whether the layer has a recurrent state.
    fn is_recurrent(&self) -> bool {
        matches!(self.mixer, MixerSpec::Conv { .. } | MixerSpec::Delta(_))
    }
}

/// A dense feed-forward block, or routed experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FfnSpec {
    /// The router. In a model with experts, a layer has experts only if its tensors are in the file.
    pub router: Option<Router>,
    /// The activation between gate, up and down.
    pub activation: Activation,
    /// Whether blocks and experts have a gate; if not, up is also the gate.
    pub gated: bool,
    /// Whether router and experts have biases.
    pub biases: bool,
    /// Whether a dense block runs in parallel with the routed experts. Both, and the router, then have their
    /// own norms.
    pub beside: bool,
    /// Whether a bias is added to the scores for choosing experts, but not to their gates.
    pub choice_bias: bool,
    /// Whether the router reads the layer's input, so that experts are known before tokens are mixed.
    pub early: bool,
}

/// Grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimension of a query or key head.
    pub head_dim: usize,
    /// Dimension of a value head.
    pub v_dim: usize,
    /// Latent attention (MLA), if the layer uses it. The latent is then part of the key and the value, too.
    pub latent: Option<LatentSpec>,
    /// Factor on the attention scores.
    pub scale: f32,
    /// Sliding window in positions; `None` for full attention.
    pub window: Option<usize>,
    /// Queries, keys and values are clamped to ±this before rotation.
    pub limit: Option<f32>,
    /// Whether norms of queries and keys come after RoPE, not before.
    pub late_norms: bool,
    /// Whether values are normed per head, without weights.
    pub v_norm: bool,
    /// Whether the value projection may be missing. The key projection's output, before norm and rotation, is
    /// then the value.
    pub keys_as_values: bool,
    /// The layer whose KV cache this one reads, if it has none of its own.
    pub kv_of: Option<usize>,
    /// Index of the rotary embedding in [`Spec::ropes`].
    pub rope: usize,
    /// Whether every head has an attention sink.
    pub sinks: bool,
    /// Whether every projection must have a bias; otherwise any may have one.
    pub biases: bool,
    /// Whether the attention output is gated: each value, or each head if the gate's matrix has a row per head, as
    /// in latent attention.
    pub gated: bool,
    /// Whether gates are softplus of their projections, instead of sigmoids.
    pub softplus: bool,
}

impl AttentionSpec {
    /// Values of one token's queries; the attention output has as many.
    pub fn q_width(&self) -> usize {
        self.heads * self.latent.map_or(self.head_dim, |of| of.head_width())
    }

    /// Values of one token's keys; its values have as many.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Values of a token's row in the value scratch buffer, which also holds the low-rank queries of latent
    /// attention.
    pub fn v_width(&self) -> usize {
        self.kv_width().max(self.latent.and_then(|of| of.q_rank).unwrap_or(0))
    }
}

/// Reads keys of the form `<arch>.key` and checks their range.
pub(super) struct Keys<'a> {
    pub(super) meta: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    pub(super) fn optional(&self, name: &str, max: u64) -> Result<Option<usize>> {
        let key = self.key(name);
        match self.meta.u64(&key)? {
            Some(v) if v > max => {
                Err(Error::malformed(key, format!("{v} is more than the {max} that are supported")))
            }
            other => Ok(other.map(|v| v as usize)),
        }
    }

    pub(super) fn required(&self, name: &str, max: u64) -> Result<usize> {
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

    /// Converters write zero if the model has no such number.
    fn positive_or_zero(&self, name: &str) -> Result<Option<f32>> {
        match self.f32(name)? {
            None | Some(0.0) => Ok(None),
            Some(_) => self.positive(name),
        }
    }
}

impl Spec {
    /// # Errors
    /// `Unsupported` for an unknown architecture or RoPE scaling. `Malformed`, naming the key, if a number is
    /// missing, out of range or contradicts another.
    pub fn from_metadata(meta: &Metadata) -> Result<Spec> {
        let family = Family::find(meta.require_str("general.architecture")?)?;
        let keys = Keys { meta, arch: family.name };
        let layers = layers(&keys)?;
        let d = keys.required("embedding_length", MAX_WIDTH)?;
        keys::check(meta, family)?;
        let context = keys.required("context_length", MAX_CONTEXT)?;
        let windows = windows(&keys, family, layers)?;
        let kv_heads = kv_heads(&keys, layers)?;
        let sources = kv_sources(&keys, &windows)?;
        let heads = heads(&keys, layers)?;
        let most = heads.iter().copied().max().unwrap_or(1);
        let with_window = |window: Option<usize>| attention(&keys, family, (d, most), layers, window);
        let [full, local] = [with_window(None)?, with_window(Some(0))?];
        let ropes = positions::ropes(&keys, family, [full.head_dim, local.head_dim], (context, &windows))?;
        let context = positions::offered(&keys, &ropes, context)?;
        let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
        // Some converters write only the other name.
        let norm_eps = eps.or(keys.positive("attention.layer_norm_epsilon")?).ok_or_else(|| {
            Error::malformed(keys.key("attention.layer_norm_rms_epsilon"), "the key is missing")
        })?;
        let (residual, logit_divisor) = multipliers(&keys, family)?;
        let (embed_scale, stream_eps) =
            (embed_scale(&keys, family, d)? / residual, norm_eps / (residual * residual));
        let (router, choice_bias) = router(&keys, family)?;
        let ffn = FfnSpec {
            router,
            activation: activation(&keys, family)?,
            gated: family.gated_blocks,
            biases: family.biases,
            beside: family.beside,
            choice_bias,
            early: family.early_router,
        };
        let taps = taps(&keys, family)?;
        let (delta, is_delta) = deltas(&keys, family, layers)?;
        let alone = if family.one_block { feed_forwards(&keys, layers)? } else { vec![false; layers] };
        let layer = |(layer, window): (usize, Option<usize>)| -> Result<LayerSpec> {
            let mixer = match (kv_heads[layer], taps, delta.filter(|_| is_delta[layer])) {
                _ if alone[layer] => MixerSpec::Nothing,
                (_, _, Some(delta)) => MixerSpec::Delta(delta),
                (Some(0), Some(taps), None) => MixerSpec::Conv { taps },
                (_, _, None) if family.latent => {
                    MixerSpec::Attention(AttentionSpec { rope: 0, window, ..full })
                }
                (kv_heads, _, None) => {
                    let attention = if window.is_some() { local } else { full };
                    let attention = AttentionSpec { heads: heads[layer], ..attention };
                    let kv_heads = divides(&keys, attention.heads, kv_heads.unwrap_or(attention.heads))?;
                    let rope = if window.is_some() { ropes.len() - 1 } else { 0 };
                    let kv_of = sources[layer];
                    MixerSpec::Attention(AttentionSpec { window, kv_heads, rope, kv_of, ..attention })
                }
            };
            let Family { pre_norms, layer_norms, sandwich, layer_scales: scaled, .. } = *family;
            let feeds = !family.one_block || alone[layer];
            Ok(LayerSpec { mixer, ffn, feeds, pre_norms, layer_norms, sandwich, scaled })
        };
        // A file may claim many layers: the vector grows only as specifications are built.
        let mut all = Vec::with_capacity(windows.len());
        for of in windows.into_iter().enumerate() {
            all.push(layer(of)?);
        }
        Ok(Spec {
            family,
            name: meta.str("general.name")?.unwrap_or(family.name).to_owned(),
            d,
            context,
            norm_eps,
            stream_eps,
            embed_scale,
            logit_divisor,
            per_layer: keys.optional("embedding_length_per_layer_input", MAX_WIDTH)?.unwrap_or(0),
            logit_cap: keys.positive_or_zero("final_logit_softcapping")?,
            layers: all,
            ropes,
        })
    }

    /// The router, if the model has experts. All layers with experts share its parameters.
    pub fn router(&self) -> Option<Router> {
        self.layers.iter().filter(|l| l.feeds).find_map(|l| l.ffn.router)
    }

    /// Sets the number of experts per token in every layer.
    pub fn set_top_k(&mut self, top_k: usize) {
        self.layers.iter_mut().filter_map(|l| l.ffn.router.as_mut()).for_each(|r| r.top_k = top_k);
    }

    /// The gated delta net, if the model has one. All such layers share its dimensions.
    pub fn delta(&self) -> Option<&DeltaSpec> {
        self.layers.iter().find_map(|l| match &l.mixer {
            MixerSpec::Delta(delta) => Some(delta),
            MixerSpec::Attention(_) | MixerSpec::Conv { .. } | MixerSpec::Nothing => None,
        })
    }

    /// The dimensions that a backend must support for this model.
    pub fn uses(&self) -> Uses {
        let router = self.router();
        Uses {
            head_dim: self.most(|a| a.head_dim),
            v_dim: self.most(|a| a.v_dim),
            experts: router.map_or(0, |r| r.experts),
            top_k: router.map_or(0, |r| r.top_k),
            key_dim: self.delta().map_or(0, |d| d.k_dim),
        }
    }

    /// Whether any layer has a recurrent state.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(LayerSpec::is_recurrent)
    }

    /// Values per token of the attention gates; 0 if there are none.
    pub fn gate_width(&self) -> usize {
        self.most(|a| match (a.gated, a.latent) {
            (false, _) => 0,
            (true, None) => a.q_width(),
            (true, Some(_)) => a.heads,
        })
    }

    /// Values per token of the convolutions' inputs; 0 if there are none.
    pub fn conv_width(&self) -> usize {
        let conv = self.layers.iter().any(|l| matches!(l.mixer, MixerSpec::Conv { .. }));
        if conv { 3 * self.d } else { 0 }
    }

    /// The logit after the model's soft cap.
    pub fn capped(&self, logit: f32) -> f32 {
        self.logit_cap.map_or(logit, |cap| cap * (logit / cap).tanh())
    }

    /// The cosine and sine tables of all rotary embeddings. `factors` divide the frequencies of the first
    /// one, that of full-attention layers.
    pub fn rope_tables(&self, positions: usize, factors: Option<&[f32]>) -> Vec<RopeTable> {
        let table = |(i, rope): (usize, &RopeConfig)| rope.table(positions, factors.filter(|_| i == 0));
        self.ropes.iter().enumerate().map(table).collect()
    }

    /// An upper bound on the values in [`Spec::rope_tables`].
    pub fn rope_values(&self, positions: usize) -> usize {
        self.ropes.iter().map(|rope| positions * (rope.dims + 1)).sum()
    }

    /// The last layer with memory of its own. Later layers only read caches that are already filled, so after it the
    /// forward pass can drop positions whose logits are not needed.
    pub fn last_with_kv(&self) -> usize {
        let own = |l: &LayerSpec| l.is_recurrent() || l.attention().is_some_and(|a| a.kv_of.is_none());
        self.layers.iter().rposition(own).unwrap_or(0)
    }

    /// The maximum of `of` over all attention layers.
    pub fn most(&self, of: impl Fn(&AttentionSpec) -> usize) -> usize {
        self.layers.iter().filter_map(LayerSpec::attention).map(of).max().unwrap_or(0)
    }
}

/// The dimensions of the gated delta nets, and which layers are such nets.
fn deltas(keys: &Keys, family: &Family, layers: usize) -> Result<(Option<DeltaSpec>, Vec<bool>)> {
    let Some(of) = family.delta else { return Ok((None, vec![false; layers])) };
    Ok((Some(DeltaSpec::read(keys, of)?), DeltaSpec::layers(keys, of, layers)?))
}

fn divides(keys: &Keys, heads: usize, kv_heads: usize) -> Result<usize> {
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::malformed(
            keys.key("attention.head_count_kv"),
            format!("{kv_heads} key/value heads do not divide {heads} heads"),
        ));
    }
    Ok(kv_heads)
}

/// Width of the short convolutions, if the family has them.
fn taps(keys: &Keys, family: &Family) -> Result<Option<usize>> {
    if !family.conv {
        return Ok(None);
    }
    match keys.required(keys::TAPS, MAX_TAPS)? {
        1 => Err(Error::malformed(keys.key(keys::TAPS), "a token must see more than itself")),
        taps => Ok(Some(taps)),
    }
}

/// Dimension of query, key and value heads, for window layers or for full-attention layers.
fn head_dim(keys: &Keys, (d, heads): (usize, usize), window: bool) -> Result<usize> {
    let of = |name: &str| -> Result<Option<usize>> {
        let own = if window { keys.optional(&format!("{name}_swa"), MAX_WIDTH)? } else { None };
        Ok(own.or(keys.optional(name, MAX_WIDTH)?).filter(|&n| n > 0))
    };
    let head_dim = match of("attention.key_length")? {
        None if d.is_multiple_of(heads) => d / heads,
        None => {
            return Err(Error::malformed(
                keys.key("attention.head_count"),
                format!("{heads} heads do not divide {d}"),
            ));
        }
        Some(n) => n,
    };
    if of("attention.value_length")?.is_some_and(|v| v != head_dim) {
        return Err(Error::unsupported(
            "value heads (`attention.value_length`) must be as long as key heads",
        ));
    }
    if heads * head_dim > MAX_WIDTH as usize {
        return Err(Error::malformed(
            keys.key("attention.key_length"),
            format!("{heads} heads of {head_dim} are too wide"),
        ));
    }
    Ok(head_dim)
}

/// Attention parameters that all layers with (or without) a window share. Key/value heads and RoPE are set
/// per layer.
fn attention(
    keys: &Keys,
    family: &Family,
    (d, heads): (usize, usize),
    layers: usize,
    window: Option<usize>,
) -> Result<AttentionSpec> {
    let latent = if family.latent { Some(LatentSpec::read(keys, heads, d)?) } else { None };
    let head_dim = match &latent {
        Some(of) => of.rope_dim + of.rank,
        None => head_dim(keys, (d, heads), window.is_some())?,
    };
    let attention = AttentionSpec {
        heads,
        kv_heads: if latent.is_some() { 1 } else { heads },
        head_dim,
        v_dim: latent.map_or(head_dim, |of| of.rank),
        latent,
        scale: 0.0,
        window,
        limit: keys.positive("attention.clamp_kqv")?,
        late_norms: family.late_norms,
        v_norm: family.v_norm,
        keys_as_values: family.keys_as_values,
        kv_of: None,
        rope: 0,
        sinks: family.sinks,
        biases: family.biases,
        gated: family.gated || family.gate_in_q,
        softplus: family.softplus,
    };
    let scale = keys.positive_or_zero("attention.scale")?;
    let scale = scale.or(latent.map(|of| of.scale)).unwrap_or_else(|| {
        let AttentionSpec { heads: count, head_dim: dim, .. } = attention;
        (family.score_scale)(&Heads { count, dim, d, layers })
    });
    Ok(AttentionSpec { scale, ..attention })
}

/// The factor on embeddings.
fn embed_scale(keys: &Keys, family: &Family, d: usize) -> Result<f32> {
    let usual = if family.embed_root { (d as f32).sqrt() } else { 1.0 };
    Ok(keys.positive_or_zero("embedding_scale")?.unwrap_or(usual))
}

/// The factor on residuals, and the divisor of logits.
fn multipliers(keys: &Keys, family: &Family) -> Result<(f32, f32)> {
    // Far from any real factor, and near enough that nothing under- or overflows.
    let number = |name: &str| match keys.positive_or_zero(name)? {
        Some(v) if !(1e-4..=1e4).contains(&v) => {
            Err(Error::malformed(keys.key(name), format!("{v} is not between 0.0001 and 10000")))
        }
        v => Ok(v.unwrap_or(1.0)),
    };
    if family.multipliers { Ok((number("residual_scale")?, number("logit_scale")?)) } else { Ok((1.0, 1.0)) }
}

/// GGUF has no keys for the parameters of the clamped activation, so we use our own.
fn activation(keys: &Keys, family: &Family) -> Result<Activation> {
    let Activation::Clamped { alpha, limit } = family.activation else { return Ok(family.activation) };
    let number = |name: &str, usual: f32| -> Result<f32> {
        let key = format!("dollop.swiglu.{name}");
        match keys.meta.f32(&key)? {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(Error::malformed(key, format!("{v} must be a number above zero")))
            }
            other => Ok(other.unwrap_or(usual)),
        }
    };
    Ok(Activation::Clamped { alpha: number("alpha", alpha)?, limit: number("limit", limit)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::Windows;

    fn with_window(architecture: &str) -> Result<Spec> {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", architecture);
        for (key, value) in [
            ("block_count", 2u32),
            ("context_length", 64),
            ("embedding_length", 64),
            ("attention.head_count", 4),
            ("attention.sliding_window", 8),
        ] {
            meta.insert(format!("{architecture}.{key}"), value);
        }
        if Family::find(architecture)?.conv {
            meta.insert(format!("{architecture}.{}", keys::TAPS), 3u32);
        }
        meta.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5f32);
        Spec::from_metadata(&meta)
    }

    /// Regression test: every layer used to get the window.
    #[test]
    fn a_window_without_a_list_is_for_the_layers_that_the_family_says() {
        for family in &super::super::families::FAMILIES {
            let windows: Result<Vec<_>> = with_window(family.name)
                .map(|s| s.layers.iter().map(|l| l.attention().unwrap().window).collect());
            match family.windows {
                Windows::All => assert_eq!(windows.unwrap(), [Some(8), Some(8)]),
                Windows::Even => assert_eq!(windows.unwrap(), [Some(8), None]),
                Windows::AllBut(nth) => assert!(nth > 2 && windows.unwrap() == [Some(8); 2]),
                Windows::AllButFirst(_) => assert_eq!(windows.unwrap(), [None, Some(8)]),
                Windows::Listed => assert!(windows.unwrap_err().to_string().contains("sliding_window")),
            }
        }
    }
}
