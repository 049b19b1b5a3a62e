//! The model families that this version runs: one file each, the only one that knows its names.
//!
//! A [`Family`] is what GGUF files and `config.json` leave unsaid. Everything else comes from the file's keys, which
//! [`super::spec`] resolves to one specification a layer.

mod deepseek2;
mod gemma3;
mod gemma4;
mod glm4moe;
mod gpt_oss;
mod lfm2;
mod lfm2moe;
mod llama;
mod olmoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;

use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::format::hf::{self, Dialect};
use crate::kernels::{Activation, Score};

/// What the scale of scores may depend on.
pub struct Heads {
    /// Query heads.
    pub count: usize,
    /// Values of a head.
    pub dim: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Layers of the model.
    pub layers: usize,
}

/// What a family fixes that files do not state.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture`.
    pub name: &'static str,
    /// What Hugging Face calls it, and how `config.json` is read then.
    pub dialects: &'static [Dialect],
    /// What becomes of a router's logits before experts are chosen.
    pub score: Score,
    /// Whether files have keys for that, for groups of experts, and for whether chosen weights are divided by their sum.
    pub router_keys: bool,
    /// Whether layers without key/value heads are short convolutions.
    pub conv: bool,
    /// Whether chosen gate weights are divided by their sum, unless the file says otherwise.
    pub renormalize: bool,
    /// The layers that a sliding window is for, where the file has one and no list of layers.
    pub windows: Windows,
    /// The key of the experts' width.
    pub expert_width: &'static str,
    /// Whether GGUF files interleave the rows of queries and keys that rotate together.
    pub interleaved: bool,
    /// Tensors, of a block or not, that GGUF files name otherwise than most: theirs, and the canonical name.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Whether attention has sinks.
    pub sinks: bool,
    /// Whether projections, routers and experts always have biases.
    pub biases: bool,
    /// Of blocks and experts. Limits are those, unless the file has others.
    pub activation: Activation,
    /// Whether what mixer and feed-forward give is normed before it is added.
    pub sandwich: bool,
    /// Whether embeddings are multiplied by the root of their width.
    pub embed_root: bool,
    /// What multiplies scores, unless the file says it.
    pub score_scale: fn(&Heads) -> f32,
    /// Whether values are normed, head by head, without weights.
    pub v_norm: bool,
    /// Whether layers may leave out values: keys, before anything is done to them, then stand for them.
    pub keys_as_values: bool,
    /// Whether layers with experts have a dense block beside them, both with norms of their own, and the router one too.
    pub beside: bool,
    /// Whether layers may have a number that multiplies the stream behind them.
    pub layer_scales: bool,
    /// Whether layers may have inputs of their own beside the stream, and the last ones read the keys and values of others.
    pub per_layer: bool,
    /// Whether frequencies of the rotary embedding of layers that see everything are in the file, where no key says them.
    pub rope_factors: bool,
    /// The base of the rotary embedding in layers with a window, unless the file says it, where it is another one there.
    pub window_rope_base: Option<f32>,
    /// Whether YaRN's ramp has its ends rounded to whole dimensions, unless the file says otherwise.
    pub yarn_truncate: bool,
    /// Whether keys and values of attention are a latent.
    pub latent: bool,
    /// Which layers are gated delta nets, where it has any.
    pub delta: Option<Deltas>,
    /// Whether what comes out of attention is gated, and GGUF files have the rows of the gate among those of queries.
    pub gate_in_q: bool,
}

/// How a family says which layers are gated delta nets, and how their heads lie.
#[derive(Clone, Copy, Debug)]
pub struct Deltas {
    /// All but every n-th, unless the file says otherwise.
    pub all_but: usize,
    /// Whether GGUF files have value heads that share a key head apart instead of side by side.
    pub tiled: bool,
}

/// The layers that a sliding window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The family does not say: a window without a list of its layers is an error.
    Listed,
    /// Every layer.
    All,
    /// Layers 0, 2, 4 and so on.
    Even,
    /// All but every n-th.
    AllBut(usize),
}

impl Family {
    /// What most families have.
    const USUAL: Family = Family {
        name: "",
        dialects: &[],
        score: Score::Softmax,
        router_keys: false,
        conv: false,
        renormalize: false,
        windows: Windows::Listed,
        expert_width: "expert_feed_forward_length",
        interleaved: false,
        renamed: &[],
        sinks: false,
        biases: false,
        activation: Activation::Swiglu,
        sandwich: false,
        embed_root: false,
        score_scale: |heads| 1.0 / (heads.dim as f32).sqrt(),
        v_norm: false,
        keys_as_values: false,
        beside: false,
        layer_scales: false,
        per_layer: false,
        rope_factors: false,
        window_rope_base: None,
        yarn_truncate: true,
        latent: false,
        delta: None,
        gate_in_q: false,
    };

    /// Its sigmoids, where a file says that it has them.
    pub fn sigmoid(&self) -> Score {
        match self.score {
            Score::Softmax => Score::Sigmoid { eps: 1e-20 },
            score => score,
        }
    }

    /// # Errors
    /// `Unsupported`, listing what is supported.
    pub fn find(architecture: &str) -> Result<&'static Family> {
        FAMILIES.iter().find(|f| f.name == architecture).ok_or_else(|| {
            let names: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
            Error::unsupported(format!(
                "architecture `{architecture}` is not supported; supported are {}",
                names.join(", ")
            ))
        })
    }
}

/// Every supported family.
pub static FAMILIES: [Family; 16] = [
    gpt_oss::FAMILY,
    deepseek2::FAMILY,
    gemma4::FAMILY,
    gemma3::FAMILY,
    glm4moe::FAMILY,
    lfm2moe::FAMILY,
    lfm2::FAMILY,
    olmoe::FAMILY,
    qwen35moe::FAMILY,
    qwen3next::FAMILY,
    qwen35::FAMILY,
    qwen3moe::FAMILY,
    qwen2moe::FAMILY,
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
];

/// How a `config.json` of this `model_type` is read.
///
/// # Errors
/// `Malformed` where the text is no JSON or names no `model_type`; `Unsupported`, listing what is supported.
pub fn dialect(config: &str) -> Result<&'static Dialect> {
    let name = hf::model_type(config)?;
    let all = || FAMILIES.iter().flat_map(|f| f.dialects);
    all().find(|d| d.model_type == name).ok_or_else(|| {
        let names: Vec<_> = all().map(|d| d.model_type).collect();
        let what = format!("model_type `{name}` is not supported; supported are {}", names.join(", "));
        Error::unsupported(what)
    })
}

/// GGUF keys for a `config.json`.
///
/// # Errors
/// As [`dialect`] and [`hf::metadata_from_config`].
pub fn metadata_from_config(config: &str) -> Result<Metadata> {
    hf::metadata_from_config(config, dialect(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_family_is_told_what_there_is() {
        let text = Family::find("mamba").unwrap_err().to_string();
        let other = dialect(r#"{"model_type": "mamba"}"#).unwrap_err().to_string();
        for family in &FAMILIES {
            assert!(text.contains(family.name), "{text}");
            assert!(family.dialects.iter().all(|d| other.contains(d.model_type)), "{other}");
            assert!(family.dialects.iter().all(|d| d.architecture == family.name));
        }
    }
}
