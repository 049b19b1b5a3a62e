//! The weights of a model, except routed experts. Each part declares its tensors here, once.
//!
//! Shapes are checked when tensors are read, so `forward` does not check them again.

mod delta;
mod latent;
mod mixer;

pub use delta::DeltaNet;
pub use latent::Latent;
pub use mixer::{Attention, Conv, Mixer};

use super::embedding::Embedding;
use super::rope::Scaling;
use super::spec::{LayerSpec, MixerSpec, Spec};
use super::tensors::{Declared, Held, Met, Tensors, part};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::dollop::{PARTS, part_name};
use crate::kernels::{Norm, Router};
use crate::quant::{Level, Matrix};

/// Name of the embedding tensor.
pub const EMBEDDING: &str = "token_embd.weight";

/// Name of the embedding tensor for the per-layer inputs.
pub const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// Implements [`Held`] for `Option<$part>`: the part exists if the expression `$is` holds.
macro_rules! optional {
    ($part:ident, $of:ident, |$arg:ident| $is:expr) => {
        impl Held for Option<$part> {
            type Of<'o> = $of<'o>;

            fn declare($arg: $of<'_>, to: &mut Vec<Declared>) {
                if $is {
                    $part::declare($arg, to);
                }
            }

            fn read(from: &dyn Tensors, $arg: $of<'_>) -> Result<Self> {
                ($is).then(|| $part::read(from, $arg)).transpose()
            }

            fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
                self.iter().for_each(|part| part.each(met));
            }

            fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
                self.iter_mut().for_each(|part| part.each_mut(met));
            }
        }
    };
}

// After the macro, because this module uses it.
mod ffn;

pub use ffn::{Beside, ExpertBiases, Ffn, Moe, MoeOf};

/// What a layer's declarations depend on.
#[derive(Clone, Copy)]
pub struct LayerOf<'a> {
    layer: usize,
    pub(super) d: usize,
    spec: &'a LayerSpec,
    /// Values of the layer's extra input; 0 if it has none.
    per_layer: usize,
    /// Rows of a tensor by its name. Only the file knows the widths of feed-forward blocks.
    rows: &'a dyn Fn(&str) -> Option<usize>,
}

impl LayerOf<'_> {
    pub(super) fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.layer)
    }

    /// Whether the layer mixes tokens.
    fn mixes(&self) -> bool {
        self.spec.mixer != MixerSpec::Nothing
    }

    /// Name of the norm before the feed-forward block. A layer of one block has one name for its norm.
    fn ffn_norm(&self) -> &'static str {
        if self.mixes() { "ffn_norm.weight" } else { "attn_norm.weight" }
    }

    /// The router, if the file has expert tensors for this layer.
    fn routed(&self) -> Option<Router> {
        self.spec
            .ffn
            .router
            .filter(|_| self.spec.feeds && (self.rows)(&part_name(self.layer, PARTS[1])).is_some())
    }

    /// Rows of the gate and up matrices.
    fn width(&self, suffix: &str) -> Option<usize> {
        (self.rows)(&self.name(&format!("ffn_up{suffix}.weight")))
    }

    /// The matrices of a feed-forward block.
    fn block(&self, suffix: &str) -> [Declared; 3] {
        let (d, ff) = (self.d, self.width(suffix).unwrap_or(0));
        let part = |part: &str, rows, cols| {
            Declared::matrix(self.name(&format!("ffn_{part}{suffix}.weight")), rows, cols)
        };
        [part("gate", ff, d).only_if(self.spec.ffn.gated), part("up", ff, d), part("down", d, ff)]
    }

    /// The matrices of a shared expert: all or none.
    fn shared(&self) -> [Declared; 3] {
        let is = self.width("_shexp").is_some();
        self.block("_shexp").map(|part| if is { part } else { part.only_if(false) })
    }

    /// The stacked matrices of the routed experts.
    fn stacks(&self, experts: usize) -> [Declared; 3] {
        let (d, ff) = (self.d, self.width("_exps").unwrap_or(0));
        let stack = |part, rows, cols| Declared::stack(part_name(self.layer, part), experts, rows, cols);
        let gate = stack(PARTS[0], ff, d).only_if(self.spec.ffn.gated);
        [gate, stack(PARTS[1], ff, d), stack(PARTS[2], d, ff)]
    }
}

part! {
    /// One transformer block.
    Layer(of: LayerOf) {
        /// `[d]`.
        first norm: Option<Vec<f32>> =
            Declared::vector(of.name("attn_norm.weight"), of.d).only_if(of.spec.pre_norms && of.mixes());
        /// `[d]`: if it is a layer norm.
        first norm_bias: Option<Vec<f32>> =
            Declared::vector(of.name("attn_norm.bias"), of.d).only_if(of.spec.layer_norms);
        /// Attention, or its replacement.
        first mixer: Mixer = of;
        /// `[d]`: norm of the mixer's output.
        first mixer_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_attention_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// `[d]`.
        first ffn_norm: Option<Vec<f32>> =
            Declared::vector(of.name(of.ffn_norm()), of.d).only_if(of.spec.pre_norms && of.spec.feeds);
        /// `[d]`: if it is a layer norm.
        first ffn_norm_bias: Option<Vec<f32>> =
            Declared::vector(of.name("ffn_norm.bias"), of.d).only_if(of.spec.layer_norms);
        /// Routed experts or one dense block.
        first ffn: Ffn = of;
        /// `[d]`: norm of the feed-forward output.
        first ffn_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_ffw_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// The part that uses the layer's extra input.
        first per_layer: Option<PerLayer> = of;
        /// `[1]`: factor on the layer's output.
        first scale: Option<Vec<f32>> =
            Declared::vector(of.name("layer_output_scale.weight"), 1).maybe_if(of.spec.scaled);
    }
}

part! {
    /// Adds a layer's extra input to the stream: `x += norm(proj · (gelu(gate · x) ⊙ input))`.
    PerLayer(of: LayerOf) {
        /// `[per_layer, d]`.
        first gate: Matrix = Declared::matrix(of.name("inp_gate.weight"), of.per_layer, of.d);
        /// `[d, per_layer]`.
        first proj: Matrix = Declared::matrix(of.name("proj.weight"), of.d, of.per_layer);
        /// `[d]`.
        first norm: Vec<f32> = Declared::vector(of.name("post_norm.weight"), of.d);
    }
}

optional!(PerLayer, LayerOf, |of| of.per_layer > 0);

/// What the declarations of tensors outside the layers depend on.
#[derive(Clone, Copy)]
pub struct EndsOf<'a> {
    spec: &'a Spec,
    vocab: usize,
}

impl EndsOf<'_> {
    /// Values of the extra inputs of all layers together.
    fn per_layer(&self) -> usize {
        self.spec.layers.len() * self.spec.per_layer
    }

    /// Whether norms are layer norms.
    fn centred(&self) -> bool {
        self.spec.family.layer_norms
    }

    /// A few families must have this tensor, unless the file's keys already define the frequencies.
    fn rope_factors(&self) -> Declared {
        let rope = &self.spec.ropes[0];
        let factors = Declared::vector("rope_freqs.weight".into(), rope.dims / 2);
        match &rope.scaling {
            Scaling::Listed { factors: said, .. } => factors.only_if(said.is_empty()),
            Scaling::Proportional { .. } => factors.maybe(),
            _ if self.spec.family.rope_factors => factors,
            _ => factors.maybe(),
        }
    }
}

impl<'a> EndsOf<'a> {
    fn new(spec: &'a Spec, rows: &dyn Fn(&str) -> Option<usize>) -> EndsOf<'a> {
        EndsOf { spec, vocab: rows(EMBEDDING).unwrap_or(0) }
    }
}

part! {
    /// The tensors before and after the layers.
    Ends(of: EndsOf) {
        /// `[vocab, d]`.
        first embed: Matrix = Declared::matrix(EMBEDDING.into(), of.vocab, of.spec.d);
        /// `[vocab, d]`; `None` if the embedding is also the head.
        first head: Option<Matrix> = Declared::matrix("output.weight".into(), of.vocab, of.spec.d).maybe();
        /// `[vocab]`.
        first head_bias: Option<Vec<f32>> = Declared::vector("output.bias".into(), of.vocab).maybe_if(of.centred());
        /// `[d]`.
        first norm: Vec<f32> = Declared::vector("output_norm.weight".into(), of.spec.d);
        /// `[d]`: if it is a layer norm.
        first norm_bias: Option<Vec<f32>> =
            Declared::vector("output_norm.bias".into(), of.spec.d).only_if(of.centred());
        /// Divisors of the RoPE frequencies, `[rope dims / 2]`.
        first rope_factors: Option<Vec<f32>> = of.rope_factors();
        /// The weights that compute the layers' extra inputs.
        first per_layer: Option<PerLayerInputs> = of;
    }
}

part! {
    /// Computes the layers' extra inputs from tokens and the embedded stream `x`: `(embed + norm(proj · x)) /
    /// √2`.
    PerLayerInputs(of: EndsOf) {
        /// `[vocab, layers · per_layer]`.
        first embed: Matrix = Declared::matrix(PER_LAYER_EMBEDDING.into(), of.vocab, of.per_layer());
        /// `[layers · per_layer, d]`.
        first proj: Matrix = Declared::matrix("per_layer_model_proj.weight".into(), of.per_layer(), of.spec.d);
        /// `[per_layer]`.
        first norm: Vec<f32> = Declared::vector("per_layer_proj_norm.weight".into(), of.spec.per_layer);
    }
}

optional!(PerLayerInputs, EndsOf, |of| of.spec.per_layer > 0);

/// [`PerLayerInputs`] with an embedding that may stay on storage: it is larger than all other weights
/// together.
#[derive(Clone, Debug)]
pub struct LayerInputs {
    /// `[vocab, layers · per_layer]`.
    pub embed: Embedding,
    /// `[layers · per_layer, d]`.
    pub proj: Matrix,
    /// `[per_layer]`.
    pub norm: Vec<f32>,
}

/// All weights except the routed experts. A clone shares the matrices' bytes.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab, d]`.
    pub embed: Embedding,
    /// Transformer blocks, in order.
    pub layers: Vec<Layer>,
    /// `[d]`.
    pub norm: Vec<f32>,
    /// `[d]`: if it is a layer norm.
    pub norm_bias: Option<Vec<f32>>,
    /// `[vocab]`.
    pub head_bias: Option<Vec<f32>>,
    /// `[vocab, d]`; the same matrix as the embedding if the file has no other.
    pub head: Matrix,
    /// Divisors of the RoPE frequencies, `[rope dims / 2]`.
    pub rope_factors: Option<Vec<f32>>,
    /// The weights that compute the layers' extra inputs.
    pub per_layer: Option<LayerInputs>,
}

/// Declares every tensor that a model of this specification may have. `rows` gives the rows of a tensor in
/// the file. Callers treat any other tensor as an error, because it would be silently ignored.
pub fn declared(spec: &Spec, rows: &dyn Fn(&str) -> Option<usize>) -> Vec<Declared> {
    let mut all = Vec::new();
    Ends::declare(EndsOf::new(spec, rows), &mut all);
    for (layer, of) in spec.layers.iter().enumerate() {
        Layer::declare(LayerOf { layer, d: spec.d, spec: of, per_layer: spec.per_layer, rows }, &mut all);
        // Old files store the RoPE frequencies again. They follow from the keys, so nothing reads this
        // tensor.
        all.push(Declared::vector(format!("blk.{layer}.attn_rot_embd.weight"), 0).maybe());
    }
    all.retain(Declared::is_known);
    all
}

/// Whether a tensor is allowed but never read: keys and values of a layer that reads another layer's cache.
/// Factors of frequencies for contexts beyond those that we offer, too.
pub fn unused(spec: &Spec, name: &str) -> bool {
    if name == "rope_factors_long.weight" {
        return spec.family.long_rope;
    }
    let of = || {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let layer = spec.layers.get(layer.parse::<usize>().ok()?)?;
        Some(
            layer.attention().is_some_and(|a| a.kv_of.is_some())
                && ["attn_k.", "attn_v.", "attn_k_norm."].iter().any(|p| part.starts_with(p)),
        )
    };
    of().unwrap_or(false)
}

impl Weights {
    /// Reads the weights, and the routed experts of each layer (empty for dense layers) at `level` or at the
    /// highest stored level.
    ///
    /// # Errors
    /// `Malformed` if a tensor is missing, or its shape differs from the specification.
    pub fn load(
        spec: &Spec,
        from: &dyn Tensors,
        level: Option<Level>,
    ) -> Result<(Weights, Vec<Vec<Expert>>)> {
        let rows = |name: &str| from.rows(name);
        let Ends { embed, head, mut head_bias, mut norm, mut norm_bias, rope_factors, per_layer } =
            Ends::read(from, EndsOf::new(spec, &rows))?;
        let biases = head_bias.iter_mut().chain(&mut norm_bias).flatten();
        norm.iter_mut().chain(biases).for_each(|w| *w /= spec.logit_divisor);
        let mut layers = Vec::with_capacity(spec.layers.len());
        let mut experts = Vec::with_capacity(spec.layers.len());
        for (layer, of) in spec.layers.iter().enumerate() {
            let of = LayerOf { layer, d: spec.d, spec: of, per_layer: spec.per_layer, rows: &rows };
            let mut layer_weights = Layer::read(from, of)?;
            if let Ffn::Moe(Moe { router_norm: Some(norm), .. }) = &mut layer_weights.ffn {
                // The router's input is divided by √d. We fold the division into the norm's weights.
                norm.iter_mut().for_each(|w| *w /= (spec.d as f32).sqrt());
            }
            layers.push(layer_weights);
            let routed = from.experts(layer, level)?.unwrap_or_default();
            match of.routed() {
                Some(router) => check_experts(&of, &routed, router.experts)?,
                None if routed.is_empty() => {}
                None => {
                    let what = "the file has experts but its config has none";
                    return Err(Error::malformed(part_name(layer, PARTS[1]), what));
                }
            }
            experts.push(routed);
        }
        if rope_factors.iter().flatten().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err(Error::malformed(
                "tensor `rope_freqs.weight`",
                "a factor is not a number above zero",
            ));
        }
        let head = head.unwrap_or_else(|| embed.clone());
        let per_layer = per_layer.map(|PerLayerInputs { embed, proj, norm }| {
            let embed = Embedding::Held(embed);
            LayerInputs { embed, proj, norm }
        });
        let embed = Embedding::Held(embed);
        Ok((Weights { embed, layers, norm, norm_bias, head_bias, head, rope_factors, per_layer }, experts))
    }

    /// Every matrix in memory, mutable. The head comes last, and is left out if it is the embedding (`tied`).
    pub fn matrices_mut(&mut self, tied: bool) -> Vec<&mut Matrix> {
        let mut all = Vec::new();
        if let Embedding::Held(embed) = &mut self.embed {
            all.push(embed);
        }
        if let Some(LayerInputs { embed, proj, .. }) = &mut self.per_layer {
            if let Embedding::Held(embed) = embed {
                all.push(embed);
            }
            all.push(proj);
        }
        self.layers.iter_mut().for_each(|layer| layer.each_mut(&mut |m| all.push(m)));
        if !tied {
            all.push(&mut self.head);
        }
        all
    }

    /// Every matrix in memory, grouped by the operation that multiplies with it. The head comes last, even if
    /// it is the embedding.
    pub fn matrices(&self) -> Vec<Vec<&Matrix>> {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let embed = self.embed.held().map(|embed| vec![embed]);
        let inputs = self.per_layer.iter().flat_map(|of| of.embed.held().into_iter().chain([&of.proj]));
        let inputs = inputs.map(|m| vec![m]);
        embed.into_iter().chain(inputs).chain(layers).chain([vec![&self.head]]).collect()
    }

    /// Every vector: norms, biases and RoPE factors.
    pub fn vectors(&self) -> Vec<&[f32]> {
        let mut all = vec![&self.norm[..]];
        all.extend(self.norm_bias.as_deref());
        all.extend(self.head_bias.as_deref());
        all.extend(self.rope_factors.as_deref());
        all.extend(self.per_layer.as_ref().map(|of| &of.norm[..]));
        let mut met = |met| {
            if let Met::Vector(v) = met {
                all.push(v)
            }
        };
        self.layers.iter().for_each(|layer| layer.each(&mut met));
        all
    }

    /// Whether the weights are unquantized (f32). Either all are or none.
    pub fn are_single(&self) -> bool {
        matches!(self.head, Matrix::F32 { .. })
    }

    /// Bytes per number in the KV cache: f32 for unquantized weights, otherwise 16 bits.
    pub fn number_bytes(&self) -> usize {
        if self.are_single() { 4 } else { 2 }
    }

    /// Vocabulary size.
    pub fn vocab(&self) -> usize {
        self.embed.rows()
    }
}

impl Layer {
    /// The norm of the mixer's input.
    pub fn mixer_norm(&self, eps: f32) -> Option<Norm<'_>> {
        self.norm.as_deref().map(|weight| Norm { weight, bias: self.norm_bias.as_deref(), eps })
    }

    /// The norm of the feed-forward input.
    pub fn feed_norm(&self, eps: f32) -> Option<Norm<'_>> {
        self.ffn_norm.as_deref().map(|weight| Norm { weight, bias: self.ffn_norm_bias.as_deref(), eps })
    }

    /// The factor on the layer's output.
    pub fn scale(&self) -> f32 {
        self.scale.as_ref().map_or(1.0, |scale| scale[0])
    }

    /// The factor on the stream after the feed-forward. It is 1 if a later part of the layer applies
    /// [`Layer::scale`].
    pub fn ffn_scale(&self) -> f32 {
        if self.per_layer.is_some() { 1.0 } else { self.scale() }
    }

    /// The layer's matrices without routed experts, grouped as in [`Weights::matrices`].
    pub fn matrices(&self) -> Vec<Vec<&Matrix>> {
        let mut all: Vec<Vec<&Matrix>> = Vec::new();
        self.each(&mut |met| match met {
            Met::Operation => all.push(Vec::new()),
            Met::Matrix(m) => all.last_mut().expect("a part begins with an operation").push(m),
            Met::Vector(_) => {}
        });
        all.retain(|operation| !operation.is_empty());
        all
    }
}

/// Checks that a layer has as many experts as its router expects, with the declared shapes.
fn check_experts(of: &LayerOf, experts: &[Expert], want: usize) -> Result<()> {
    let stacks = of.stacks(want);
    if experts.len() != want {
        let reason = format!("{} experts; the config asks for {want}", experts.len());
        return Err(Error::malformed(stacks[1].name.clone(), reason));
    }
    for e in experts {
        if e.gate.is_some() != stacks[0].is_known() {
            let what = "the file's experts have a gate and the family's have none, or the other way around";
            return Err(Error::malformed(stacks[0].name.clone(), what));
        }
        for (stack, m) in stacks.iter().filter(|stack| stack.is_known()).zip(e.matrices()) {
            stack.check(Some(&[want, m.rows(), m.cols()]), "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Metadata;

    /// Regression test: biases of experts were read as stacks of matrices, or dropped.
    #[test]
    fn a_tensor_that_no_part_has_is_not_known() {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "olmoe");
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", 64),
            ("embedding_length", 64),
            ("attention.head_count", 4),
            ("expert_count", 4),
            ("expert_used_count", 2),
        ] {
            meta.insert(format!("olmoe.{key}"), value);
        }
        meta.insert("olmoe.attention.layer_norm_rms_epsilon", 1e-5f32);
        let spec = Spec::from_metadata(&meta).unwrap();
        let all = declared(&spec, &|name| name.contains("_exps.").then_some(32));
        let has = |name: &str| all.iter().any(|d| d.name == name);
        assert!(has("blk.0.ffn_up_exps.weight") && has("blk.0.attn_q.bias") && has("output.weight"));
        for name in [
            "blk.0.ffn_gate_exps.bias",
            "blk.0.ffn_up_exps.bias",
            "blk.0.ffn_gate.weight",
            "blk.1.attn_q.weight",
        ] {
            assert!(!has(name), "{name}");
        }
    }
}
