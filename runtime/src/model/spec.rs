//! What a model computes, layer by layer: resolved once from the file's keys and its family, and checked. Knows no weights.

mod delta;
mod latent;
mod positions;
mod router;

use super::families::{Family, Heads};
use super::keys;
use super::rope::RopeConfig;
use crate::error::{Error, Result};
use crate::format::{Metadata, Value};
use crate::kernels::{Activation, RopeTable, Router, Uses};
pub use delta::DeltaSpec;
pub use latent::LatentSpec;
use positions::windows;
use router::router;

/// Bounds on what a file may claim, far above any real model and far below what would overflow or exhaust memory.
const MAX_LAYERS: u64 = 1024;
const MAX_WIDTH: u64 = 1 << 17;
const MAX_HEADS: u64 = 4096;
const MAX_EXPERTS: u64 = 4096;
const MAX_CONTEXT: u64 = 1 << 24;
const MAX_TAPS: u64 = 64;

/// A model's specification.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Of which family it is.
    pub family: &'static Family,
    /// `general.name`, or the architecture's.
    pub name: String,
    /// Width of the residual stream.
    pub d: usize,
    /// Longest context the model was made for, in tokens.
    pub context: usize,
    /// In every RMS norm.
    pub norm_eps: f32,
    /// Rotary embeddings: that of layers that see everything, and that of others where theirs differs.
    pub ropes: Vec<RopeConfig>,
    /// Multiplies embeddings.
    pub embed_scale: f32,
    /// Values of an input that each layer has of each token beside the stream; 0 for none.
    pub per_layer: usize,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
    /// Transformer blocks, in order.
    pub layers: Vec<LayerSpec>,
}

/// What a layer computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// What mixes its tokens.
    pub mixer: MixerSpec,
    /// Its feed-forward block or experts.
    pub ffn: FfnSpec,
    /// Whether what mixer and feed-forward give is normed before it is added.
    pub sandwich: bool,
    /// Whether a number may multiply the stream behind it.
    pub scaled: bool,
}

/// What mixes the tokens of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MixerSpec {
    /// Attention.
    Attention(AttentionSpec),
    /// A gated short convolution.
    Conv {
        /// Tokens that one sees, itself among them.
        taps: usize,
    },
    /// A gated delta net.
    Delta(DeltaSpec),
}

impl LayerSpec {
    /// Its attention, if it has any.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            MixerSpec::Attention(a) => Some(a),
            MixerSpec::Conv { .. } | MixerSpec::Delta(_) => None,
        }
    }
}

/// A feed-forward block, or experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FfnSpec {
    /// Routing, where the layer has experts: in a model with experts its tensors say that.
    pub router: Option<Router>,
    /// Between gate, up and down.
    pub activation: Activation,
    /// Whether router and experts have biases.
    pub biases: bool,
    /// Whether a dense block stands beside routed experts, both with norms of their own, and the router has one too.
    pub beside: bool,
    /// Whether experts are chosen with a bias that their weights are without.
    pub choice_bias: bool,
}

/// Attention of grouped queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of a query and a key.
    pub head_dim: usize,
    /// Values of a value.
    pub v_dim: usize,
    /// How queries, keys and values come about, where keys are a latent that is the value too.
    pub latent: Option<LatentSpec>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Sliding window.
    pub window: Option<usize>,
    /// Limit on queries, keys and values before rotation.
    pub limit: Option<f32>,
    /// Whether values are normed, head by head, without weights.
    pub v_norm: bool,
    /// Whether values may be left out: keys, before anything is done to them, then stand for them.
    pub keys_as_values: bool,
    /// The layer whose keys and values it reads instead of its own.
    pub kv_of: Option<usize>,
    /// Which of the model's rotary embeddings.
    pub rope: usize,
    /// Whether every head has a sink.
    pub sinks: bool,
    /// Whether all projections have biases; otherwise any may.
    pub biases: bool,
    /// Whether what comes out is gated.
    pub gated: bool,
}

impl AttentionSpec {
    /// Values of queries that one token has, and of what comes out.
    pub fn q_width(&self) -> usize {
        self.heads * self.latent.map_or(self.head_dim, |of| of.head_width())
    }

    /// Values of keys (and as many of values) that one token adds to the layer's cache.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Values that scratch for a token's values takes.
    pub fn v_width(&self) -> usize {
        self.kv_width().max(self.latent.and_then(|of| of.q_rank).unwrap_or(0))
    }
}

/// Reads `<arch>.key` and checks its range.
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

    /// Zero is what converters write that have no such number.
    fn positive_or_zero(&self, name: &str) -> Result<Option<f32>> {
        match self.f32(name)? {
            None | Some(0.0) => Ok(None),
            Some(_) => self.positive(name),
        }
    }
}

impl Spec {
    /// # Errors
    /// `Unsupported` for an unknown architecture or rope scaling; `Malformed`, naming the key, for what is missing,
    /// out of range or contradictory.
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
        let with_window = |window: Option<usize>| attention(&keys, family, d, layers, window);
        let [full, local] = [with_window(None)?, with_window(Some(0))?];
        let ropes = positions::ropes(&keys, family, [full.head_dim, local.head_dim], context)?;
        let norm_eps = keys.positive("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            Error::malformed(keys.key("attention.layer_norm_rms_epsilon"), "the key is missing")
        })?;
        let (router, choice_bias) = router(&keys, family)?;
        let ffn = FfnSpec {
            router,
            activation: activation(&keys, family)?,
            biases: family.biases,
            beside: family.beside,
            choice_bias,
        };
        let taps = taps(&keys, family)?;
        let (delta, is_delta) = deltas(&keys, family, layers)?;
        let layer = |(layer, window): (usize, Option<usize>)| -> Result<LayerSpec> {
            let mixer = match (kv_heads[layer], taps, delta.filter(|_| is_delta[layer])) {
                (_, _, Some(delta)) => MixerSpec::Delta(delta),
                (Some(0), Some(taps), None) => MixerSpec::Conv { taps },
                (_, _, None) if family.latent => {
                    MixerSpec::Attention(AttentionSpec { rope: 0, window, ..full })
                }
                (kv_heads, _, None) => {
                    let attention = if window.is_some() { local } else { full };
                    let kv_heads = divides(&keys, attention.heads, kv_heads.unwrap_or(attention.heads))?;
                    let rope = if window.is_some() { ropes.len() - 1 } else { 0 };
                    let kv_of = sources[layer];
                    MixerSpec::Attention(AttentionSpec { window, kv_heads, rope, kv_of, ..attention })
                }
            };
            Ok(LayerSpec { mixer, ffn, sandwich: family.sandwich, scaled: family.layer_scales })
        };
        // A file may claim many: no more is taken than they need.
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
            embed_scale: embed_scale(&keys, family, d)?,
            per_layer: keys.optional("embedding_length_per_layer_input", MAX_WIDTH)?.unwrap_or(0),
            logit_cap: keys.positive_or_zero("final_logit_softcapping")?,
            layers: all,
            ropes,
        })
    }

    /// Routing, where the model has experts; all layers that have them route alike.
    pub fn router(&self) -> Option<Router> {
        self.layers.iter().find_map(|l| l.ffn.router)
    }

    /// The same model with fewer experts per token.
    pub fn set_top_k(&mut self, top_k: usize) {
        self.layers.iter_mut().filter_map(|l| l.ffn.router.as_mut()).for_each(|r| r.top_k = top_k);
    }

    /// Its gated delta nets, where it has any; all layers that have one have alike ones.
    pub fn delta(&self) -> Option<&DeltaSpec> {
        self.layers.iter().find_map(|l| match &l.mixer {
            MixerSpec::Delta(delta) => Some(delta),
            MixerSpec::Attention(_) | MixerSpec::Conv { .. } => None,
        })
    }

    /// What a backend must compute for it.
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

    /// Whether layers keep a state that stands for one position.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|l| l.attention().is_none())
    }

    /// Values of a row that gates of attention take; 0 where there are none.
    pub fn gate_width(&self) -> usize {
        self.most(|a| if a.gated { a.q_width() } else { 0 })
    }

    /// Values of a row that the inputs of convolutions take; 0 where there are none.
    pub fn conv_width(&self) -> usize {
        let conv = self.layers.iter().any(|l| matches!(l.mixer, MixerSpec::Conv { .. }));
        if conv { 3 * self.d } else { 0 }
    }

    /// A logit within the model's limit.
    pub fn capped(&self, logit: f32) -> f32 {
        self.logit_cap.map_or(logit, |cap| cap * (logit / cap).tanh())
    }

    /// The tables of its rotary embeddings. `factors` divide frequencies of the first, that of layers that see everything.
    pub fn rope_tables(&self, positions: usize, factors: Option<&[f32]>) -> Vec<RopeTable> {
        let table = |(i, rope): (usize, &RopeConfig)| rope.table(positions, factors.filter(|_| i == 0));
        self.ropes.iter().enumerate().map(table).collect()
    }

    /// Values of [`Spec::rope_tables`], with what names each.
    pub fn rope_values(&self, positions: usize) -> usize {
        self.ropes.iter().map(|rope| positions * (rope.dims + 1)).sum()
    }

    /// The last layer that keeps something of its own: behind it, a position needs nothing of others but those.
    pub fn last_with_kv(&self) -> usize {
        let own = |l: &LayerSpec| l.attention().is_none_or(|a| a.kv_of.is_none());
        self.layers.iter().rposition(own).unwrap_or(0)
    }

    /// The greatest of a number of all layers with attention.
    pub fn most(&self, of: impl Fn(&AttentionSpec) -> usize) -> usize {
        self.layers.iter().filter_map(LayerSpec::attention).map(of).max().unwrap_or(0)
    }
}

/// Layers that are run: those of a draft head are counted behind them.
fn layers(keys: &Keys) -> Result<usize> {
    let blocks = keys.required("block_count", MAX_LAYERS)?;
    let draft = keys.optional("nextn_predict_layers", MAX_LAYERS)?.unwrap_or(0);
    blocks.checked_sub(draft).filter(|&layers| layers > 0).ok_or_else(|| {
        let what = format!("{draft} of {blocks} layers");
        Error::malformed(keys.key("nextn_predict_layers"), what)
    })
}

/// Key/value heads of each layer: one number for all, or a list; `None` where there are as many as heads. 0 is a layer without
/// attention.
fn kv_heads(keys: &Keys, layers: usize) -> Result<Vec<Option<usize>>> {
    const NAME: &str = "attention.head_count_kv";
    let key = keys.key(NAME);
    if !matches!(keys.meta.get(&key), Some(Value::Array(_))) {
        return Ok(vec![keys.optional(NAME, MAX_HEADS)?; layers]);
    }
    let listed = keys.meta.u64s(&key)?.unwrap_or_default();
    match listed.iter().find(|&&n| n > MAX_HEADS) {
        _ if listed.len() != layers => {
            Err(Error::malformed(key, format!("{} entries for {layers} layers", listed.len())))
        }
        Some(n) => Err(Error::malformed(key, format!("{n} is more than the {MAX_HEADS} that are supported"))),
        None => Ok(listed.into_iter().map(|n| Some(n as usize)).collect()),
    }
}

/// The gated delta net that layers have, and which do.
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

/// Taps of short convolutions, where the family has them.
fn taps(keys: &Keys, family: &Family) -> Result<Option<usize>> {
    if !family.conv {
        return Ok(None);
    }
    match keys.required(keys::TAPS, MAX_TAPS)? {
        1 => Err(Error::malformed(keys.key(keys::TAPS), "a token must see more than itself")),
        taps => Ok(Some(taps)),
    }
}

/// For each layer, the one whose keys and values it reads: the last layers have none of their own, and take those of the last of
/// their kind before.
fn kv_sources(keys: &Keys, windows: &[Option<usize>]) -> Result<Vec<Option<usize>>> {
    const NAME: &str = "attention.shared_kv_layers";
    let shared = keys.optional(NAME, MAX_LAYERS)?.unwrap_or(0);
    let wrong = |what: &str| Error::malformed(keys.key(NAME), format!("{shared}: {what}"));
    let own = windows.len().checked_sub(shared).ok_or_else(|| wrong("there are fewer layers"))?;
    let source = |layer: usize| -> Result<Option<usize>> {
        if layer < own {
            return Ok(None);
        }
        let found = (0..own).rev().find(|&l| windows[l].is_some() == windows[layer].is_some());
        found.map(Some).ok_or_else(|| wrong("there is no layer of that kind before"))
    };
    (0..windows.len()).map(source).collect()
}

/// Values of a head of keys or queries, and of values, of layers of a kind.
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
            "values of another length than keys (`attention.value_length`) are not supported",
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

/// Attention as every layer with or without a window has it, but for the number of its key/value heads and its rope.
fn attention(
    keys: &Keys,
    family: &Family,
    d: usize,
    layers: usize,
    window: Option<usize>,
) -> Result<AttentionSpec> {
    let heads = keys.required("attention.head_count", MAX_HEADS)?;
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
        v_norm: family.v_norm,
        keys_as_values: family.keys_as_values,
        kv_of: None,
        rope: 0,
        sinks: family.sinks,
        biases: family.biases,
        gated: family.gate_in_q,
    };
    let scale = keys.positive_or_zero("attention.scale")?;
    let scale = scale.or(latent.map(|of| of.scale)).unwrap_or_else(|| {
        let AttentionSpec { heads: count, head_dim: dim, .. } = attention;
        (family.score_scale)(&Heads { count, dim, d, layers })
    });
    Ok(AttentionSpec { scale, ..attention })
}

/// What multiplies embeddings.
fn embed_scale(keys: &Keys, family: &Family, d: usize) -> Result<f32> {
    let usual = if family.embed_root { (d as f32).sqrt() } else { 1.0 };
    Ok(keys.positive_or_zero("embedding_scale")?.unwrap_or(usual))
}

/// GGUF has no keys for the limits.
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

    /// Every layer got it before.
    #[test]
    fn a_window_without_a_list_is_for_the_layers_that_the_family_says() {
        for family in &super::super::families::FAMILIES {
            let windows: Result<Vec<_>> = with_window(family.name)
                .map(|s| s.layers.iter().map(|l| l.attention().unwrap().window).collect());
            match family.windows {
                Windows::All => assert_eq!(windows.unwrap(), [Some(8), Some(8)]),
                Windows::Even => assert_eq!(windows.unwrap(), [Some(8), None]),
                Windows::AllBut(nth) => assert!(nth > 2 && windows.unwrap() == [Some(8); 2]),
                Windows::Listed => assert!(windows.unwrap_err().to_string().contains("sliding_window")),
            }
        }
    }
}
