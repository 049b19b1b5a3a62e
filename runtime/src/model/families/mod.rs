//! The supported model families, one file each. A family's names appear only in its own file.
//!
//! A [`Family`] holds what neither GGUF files nor `config.json` state. The rest comes from the file's keys,
//! which [`super::spec`] resolves to one specification per layer.

mod afmoe;
mod bailingmoe2;
mod bailingmoe3;
mod deepseek2;
mod dots1;
mod ernie4_5_moe;
mod flex_olmo;
mod gemma3;
mod gemma4;
mod glm4moe;
mod gpt_oss;
mod granite_hybrid;
mod granitemoe;
mod grovemoe;
mod hunyuan_moe;
mod kimi_linear;
mod laguna;
mod lfm2;
mod lfm2moe;
mod llama;
mod mellum;
mod minimax_m2;
mod nemotron_h;
mod nemotron_h_moe;
mod olmoe;
mod phimoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod smallthinker;

use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::format::hf::{self, Dialect};
use crate::kernels::{Activation, Score};

/// What the default scale of attention scores may depend on.
pub struct Heads {
    /// Query heads.
    pub count: usize,
    /// Dimension of a head.
    pub dim: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Number of layers.
    pub layers: usize,
}

/// The facts about a family that files do not state.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture`.
    pub name: &'static str,
    /// The Hugging Face `model_type`s, and how to read their `config.json`.
    pub dialects: &'static [Dialect],
    /// The score function that the router applies to its logits.
    pub score: Score,
    /// Whether files have keys for the score function, for expert groups, and for renormalizing the gates.
    pub router_keys: bool,
    /// Whether experts may be chosen with a bias although their scores are a softmax.
    pub biased: bool,
    /// Whether routers read a layer's input, before its mixer and without a norm.
    pub early_router: bool,
    /// Whether layers without key/value heads are short convolutions.
    pub conv: bool,
    /// Whether the chosen gates are divided by their sum, unless the file says otherwise.
    pub renormalize: bool,
    /// Which layers use the sliding window, if the file has one but no list of layers.
    pub windows: Windows,
    /// The key with the experts' width.
    pub expert_width: &'static str,
    /// If groups of experts share narrow ones in the source: the factor on these. They are joined when it is read.
    pub narrow_experts: Option<f32>,
    /// Whether GGUF files interleave those rows of queries and keys that rotate together.
    pub interleaved: bool,
    /// Unusual tensor names in GGUF files, each with the canonical name.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Whether attention heads have sinks.
    pub sinks: bool,
    /// Whether projections, routers and experts always have biases.
    pub biases: bool,
    /// Activation of dense blocks and experts. The file may override the numbers of the clamped activation.
    pub activation: Activation,
    /// Whether dense blocks and experts have a gate; if not, up is also the gate.
    pub gated_blocks: bool,
    /// Whether each layer is one block: a mixer or a feed-forward block.
    pub one_block: bool,
    /// Whether mixer and feed-forward read the normed stream.
    pub pre_norms: bool,
    /// Whether norms of the stream are layer norms, with biases.
    pub layer_norms: bool,
    /// Whether the outputs of mixer and feed-forward are normed before they are added.
    pub sandwich: bool,
    /// Whether embeddings are multiplied by √d.
    pub embed_root: bool,
    /// Whether files may have a factor on residuals (`residual_scale`) and a divisor of logits (`logit_scale`).
    pub multipliers: bool,
    /// The factor on attention scores, unless the file says otherwise.
    pub score_scale: fn(&Heads) -> f32,
    /// Whether norms of queries and keys come after RoPE, not before.
    pub late_norms: bool,
    /// Whether values are normed per head, without weights.
    pub v_norm: bool,
    /// Whether the value projection may be missing. The key projection's output, before norm and rotation, is
    /// then the value.
    pub keys_as_values: bool,
    /// Whether layers with experts have a dense block in parallel. Both, and the router, then have their own
    /// norms.
    pub beside: bool,
    /// Whether a layer's output may be multiplied by a stored number.
    pub layer_scales: bool,
    /// Whether layers may have extra inputs, and the last layers may read earlier layers' KV caches.
    pub per_layer: bool,
    /// Whether the file has a tensor with factors for the RoPE of full-attention layers, unless keys define
    /// the frequencies.
    pub rope_factors: bool,
    /// Whether GGUF files with a factor on cosines and sines have LongRoPE's factors of frequencies.
    pub long_rope: bool,
    /// Whether only window layers rotate queries and keys.
    pub rope_in_windows: bool,
    /// Whether all layers rotate them if none has a window.
    pub rope_without_windows: bool,
    /// The RoPE base of window layers, if they have their own; a file may override it.
    pub window_rope_base: Option<f32>,
    /// Whether the ends of YaRN's ramp are rounded to whole dimensions, unless the file says otherwise.
    pub yarn_truncate: bool,
    /// Whether the model uses latent attention (MLA).
    pub latent: bool,
    /// Which layers are gated delta nets, if the family has them.
    pub delta: Option<Deltas>,
    /// Whether queries and keys are rotated at all.
    pub rotates: bool,
    /// Whether the attention output is gated; in latent attention, by one number per head. Otherwise the gate's matrix
    /// shows whether by one number per head or per value.
    pub gated: bool,
    /// Whether these gates are softplus of their projections, instead of sigmoids.
    pub softplus: bool,
    /// Whether it is gated, and GGUF files store the gate's rows within the query projection.
    pub gate_in_q: bool,
}

/// The kind of gated delta nets of a family, and how it places them.
#[derive(Clone, Copy, Debug)]
pub enum Deltas {
    /// One decay per head (arXiv 2412.06464).
    Heads {
        /// Every n-th layer is attention, the others are delta nets, unless the file says otherwise.
        all_but: usize,
        /// Whether GGUF files order value heads so that head `j` uses key head `j mod k_heads`, instead of
        /// placing heads with one key head side by side.
        tiled: bool,
    },
    /// One decay per value of a key (arXiv 2510.26692). Layers without key/value heads are such nets.
    Channels {
        /// Whether decay and output gate are projected in two steps.
        low_rank: bool,
        /// Whether GGUF files store decay rates without their sign.
        positive: bool,
    },
    /// Mamba-2 (arXiv 2405.21060): a token adds its value instead of a correction, with one decay per head. Layers
    /// without key/value heads are such nets.
    Adding,
}

/// Which layers use the sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The family does not say. A window without a list of layers is an error.
    Listed,
    /// Every layer.
    All,
    /// Layers 0, 2, 4 and so on.
    Even,
    /// All but every n-th.
    AllBut(usize),
    /// All but the first of every n.
    AllButFirst(usize),
}

impl Family {
    /// Defaults, shared by most families.
    const USUAL: Family = Family {
        name: "",
        dialects: &[],
        score: Score::Softmax,
        router_keys: false,
        biased: false,
        early_router: false,
        conv: false,
        renormalize: false,
        windows: Windows::Listed,
        expert_width: "expert_feed_forward_length",
        narrow_experts: None,
        interleaved: false,
        renamed: &[],
        sinks: false,
        biases: false,
        activation: Activation::Swiglu,
        gated_blocks: true,
        one_block: false,
        pre_norms: true,
        layer_norms: false,
        sandwich: false,
        embed_root: false,
        multipliers: false,
        score_scale: |heads| 1.0 / (heads.dim as f32).sqrt(),
        late_norms: false,
        v_norm: false,
        keys_as_values: false,
        beside: false,
        layer_scales: false,
        per_layer: false,
        rope_factors: false,
        long_rope: false,
        rope_in_windows: false,
        rope_without_windows: false,
        window_rope_base: None,
        yarn_truncate: true,
        latent: false,
        delta: None,
        rotates: true,
        gated: false,
        softplus: false,
        gate_in_q: false,
    };

    /// The family's sigmoid score, for files whose keys choose sigmoid.
    pub fn sigmoid(&self) -> Score {
        match self.score {
            Score::Softmax => Score::Sigmoid { eps: 1e-20 },
            score => score,
        }
    }

    /// # Errors
    /// `Unsupported`, listing the supported architectures.
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
pub static FAMILIES: [Family; 34] = [
    afmoe::FAMILY,
    bailingmoe2::FAMILY,
    bailingmoe3::FAMILY,
    gpt_oss::FAMILY,
    deepseek2::FAMILY,
    dots1::FAMILY,
    ernie4_5_moe::FAMILY,
    flex_olmo::FAMILY,
    gemma4::FAMILY,
    gemma3::FAMILY,
    glm4moe::FAMILY,
    granitemoe::FAMILY,
    granite_hybrid::FAMILY,
    grovemoe::FAMILY,
    hunyuan_moe::FAMILY,
    kimi_linear::FAMILY,
    laguna::FAMILY,
    lfm2moe::FAMILY,
    lfm2::FAMILY,
    mellum::FAMILY,
    minimax_m2::FAMILY,
    nemotron_h_moe::FAMILY,
    nemotron_h::FAMILY,
    olmoe::FAMILY,
    phimoe::FAMILY,
    qwen35moe::FAMILY,
    qwen3next::FAMILY,
    qwen35::FAMILY,
    qwen3moe::FAMILY,
    qwen2moe::FAMILY,
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    smallthinker::FAMILY,
];

/// Finds how to read a `config.json` by its `model_type`, and by its `architectures` if models share the type.
///
/// # Errors
/// `Malformed` if the text is not JSON or has no `model_type`. `Unsupported`, listing the supported types and
/// architectures, for others.
pub fn dialect(config: &str) -> Result<&'static Dialect> {
    let (name, classes) = hf::model_type(config)?;
    let all = || FAMILIES.iter().flat_map(|f| f.dialects);
    let of_class = |d: &Dialect| d.classes.is_empty() || classes.iter().any(|c| d.classes.contains(&&**c));
    all().find(|d| d.model_type == name && of_class(d)).ok_or_else(|| {
        let of = |d: &Dialect| match d.classes {
            [] => d.model_type.to_owned(),
            classes => format!("{} (architectures {})", d.model_type, classes.join(" or ")),
        };
        let names: Vec<_> = all().map(of).collect();
        let what = format!("model_type `{name}` is not supported; supported are {}", names.join(", "));
        Error::unsupported(what)
    })
}

/// Converts a `config.json` to GGUF keys.
///
/// # Errors
/// Those of [`dialect`] and [`hf::metadata_from_config`].
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

    #[test]
    fn models_of_one_type_differ_by_their_class() {
        let of = |kind: &str, class: &str| {
            dialect(&format!(r#"{{"model_type": "{kind}", "architectures": ["{class}"]}}"#))
        };
        let with_classes = || FAMILIES.iter().flat_map(|f| f.dialects).filter(|d| !d.classes.is_empty());
        assert!(with_classes().count() >= 2);
        for d in with_classes() {
            for class in d.classes {
                assert_eq!(of(d.model_type, class).unwrap().architecture, d.architecture);
            }
            let error = of(d.model_type, "Another").unwrap_err().to_string();
            assert!(error.contains(d.classes[0]), "{error}");
        }
    }
}
