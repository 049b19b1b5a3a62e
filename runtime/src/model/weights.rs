//! The always-used weights of a model: what each part has is declared here, once.
//!
//! Every shape is checked when it is read, so that `forward` need not.

mod delta;
mod latent;
mod mixer;

pub use delta::DeltaNet;
pub use latent::Latent;
pub use mixer::{Attention, Conv, Mixer};

use super::embedding::Embedding;
use super::rope::Scaling;
use super::spec::{LayerSpec, Spec};
use super::tensors::{Declared, Held, Met, Tensors, part};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::dollop::{PARTS, part_name};
use crate::kernels::Router;
use crate::quant::{Level, Matrix};

/// The embedding's name.
pub const EMBEDDING: &str = "token_embd.weight";

/// The name of the embedding that inputs of layers are made of.
pub const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";

/// A part that is there or not, by what it is of.
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

// Behind the macro that it uses.
mod ffn;

pub use ffn::{Beside, ExpertBiases, Ffn, Moe, MoeOf};

/// A layer of a model, as its declarations need it.
#[derive(Clone, Copy)]
pub struct LayerOf<'a> {
    layer: usize,
    pub(super) d: usize,
    spec: &'a LayerSpec,
    /// Values of its own input.
    per_layer: usize,
    /// Rows of a matrix by name: the width of a feed-forward block is known to the file alone.
    rows: &'a dyn Fn(&str) -> Option<usize>,
}

impl LayerOf<'_> {
    pub(super) fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.layer)
    }

    /// Its router, where it has experts.
    fn routed(&self) -> Option<Router> {
        self.spec.ffn.router.filter(|_| (self.rows)(&part_name(self.layer, PARTS[0])).is_some())
    }

    /// Rows of gate and up.
    fn width(&self, suffix: &str) -> Option<usize> {
        (self.rows)(&self.name(&format!("ffn_up{suffix}.weight")))
    }

    /// The three matrices of a block.
    fn block(&self, suffix: &str) -> [Declared; 3] {
        let (d, ff) = (self.d, self.width(suffix).unwrap_or(0));
        let part = |part: &str, rows, cols| {
            Declared::matrix(self.name(&format!("ffn_{part}{suffix}.weight")), rows, cols)
        };
        [part("gate", ff, d), part("up", ff, d), part("down", d, ff)]
    }

    /// A shared expert, whole or not at all.
    fn shared(&self) -> [Declared; 3] {
        let is = self.width("_shexp").is_some();
        self.block("_shexp").map(|part| part.only_if(is))
    }

    /// The matrices of its routed experts.
    fn stacks(&self, experts: usize) -> [Declared; 3] {
        let (d, ff) = (self.d, self.width("_exps").unwrap_or(0));
        let stack = |part, rows, cols| Declared::stack(part_name(self.layer, part), experts, rows, cols);
        [stack(PARTS[0], ff, d), stack(PARTS[1], ff, d), stack(PARTS[2], d, ff)]
    }
}

part! {
    /// One block.
    Layer(of: LayerOf) {
        /// `[d]`.
        first norm: Vec<f32> = Declared::vector(of.name("attn_norm.weight"), of.d);
        /// Attention, or what stands in its place.
        first mixer: Mixer = of;
        /// `[d]`: of what that gives.
        first mixer_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_attention_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// `[d]`.
        first ffn_norm: Vec<f32> = Declared::vector(of.name("ffn_norm.weight"), of.d);
        /// Experts or one dense block.
        first ffn: Ffn = of;
        /// `[d]`: of what they give.
        first ffn_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_ffw_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// What takes the layer's own input in.
        first per_layer: Option<PerLayer> = of;
        /// `[1]`: multiplies the stream behind the layer.
        first scale: Option<Vec<f32>> =
            Declared::vector(of.name("layer_output_scale.weight"), 1).maybe_if(of.spec.scaled);
    }
}

part! {
    /// What takes a layer's own input in: `x += norm(proj · (gelu(gate · x) ⊙ input))`.
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

/// A model beside its layers, as its declarations need it.
#[derive(Clone, Copy)]
pub struct EndsOf<'a> {
    spec: &'a Spec,
    vocab: usize,
}

impl EndsOf<'_> {
    /// Values of the inputs of all layers.
    fn per_layer(&self) -> usize {
        self.spec.layers.len() * self.spec.per_layer
    }

    /// Some families' files have them unless a key says what they would.
    fn rope_factors(&self) -> Declared {
        let rope = &self.spec.ropes[0];
        let factors = Declared::vector("rope_freqs.weight".into(), rope.dims / 2);
        let said = matches!(rope.scaling, Scaling::Proportional { .. });
        if self.spec.family.rope_factors && !said { factors } else { factors.maybe() }
    }
}

impl<'a> EndsOf<'a> {
    fn new(spec: &'a Spec, rows: &dyn Fn(&str) -> Option<usize>) -> EndsOf<'a> {
        EndsOf { spec, vocab: rows(EMBEDDING).unwrap_or(0) }
    }
}

part! {
    /// What stands before and behind the layers.
    Ends(of: EndsOf) {
        /// `[vocab, d]`.
        first embed: Matrix = Declared::matrix(EMBEDDING.into(), of.vocab, of.spec.d);
        /// `[vocab, d]`; the embedding where the file ties them.
        first head: Option<Matrix> = Declared::matrix("output.weight".into(), of.vocab, of.spec.d).maybe();
        /// `[d]`.
        first norm: Vec<f32> = Declared::vector("output_norm.weight".into(), of.spec.d);
        /// Divisors of the rope frequencies, `[rope dims / 2]`.
        first rope_factors: Option<Vec<f32>> = of.rope_factors();
        /// What inputs of layers are made of.
        first per_layer: Option<PerLayerInputs> = of;
    }
}

part! {
    /// What inputs of layers are made of: `(embed + norm(proj · x)) / √2` of the embedded stream.
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

/// [`PerLayerInputs`], whose embedding need not be held: it is larger than all the rest.
#[derive(Clone, Debug)]
pub struct LayerInputs {
    /// `[vocab, layers · per_layer]`.
    pub embed: Embedding,
    /// `[layers · per_layer, d]`.
    pub proj: Matrix,
    /// `[per_layer]`.
    pub norm: Vec<f32>,
}

/// Everything but the routed experts. A clone shares the matrices' bytes.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab, d]`.
    pub embed: Embedding,
    /// Blocks, in order.
    pub layers: Vec<Layer>,
    /// `[d]`.
    pub norm: Vec<f32>,
    /// `[vocab, d]`; the embedding where the file ties them.
    pub head: Matrix,
    /// Divisors of the rope frequencies, `[rope dims / 2]`.
    pub rope_factors: Option<Vec<f32>>,
    /// What inputs of layers are made of.
    pub per_layer: Option<LayerInputs>,
}

/// Every tensor that a model has. `rows` gives the rows of a matrix that the file has. A tensor that is not among them would be ignored
/// without a word: it is an error.
pub fn declared(spec: &Spec, rows: &dyn Fn(&str) -> Option<usize>) -> Vec<Declared> {
    let mut all = Vec::new();
    Ends::declare(EndsOf::new(spec, rows), &mut all);
    for (layer, of) in spec.layers.iter().enumerate() {
        Layer::declare(LayerOf { layer, d: spec.d, spec: of, per_layer: spec.per_layer, rows }, &mut all);
        // Old files repeat the rope's frequencies, which follow from the keys.
        all.push(Declared::vector(format!("blk.{layer}.attn_rot_embd.weight"), 0).maybe());
    }
    all.retain(Declared::is_known);
    all
}

/// Whether a tensor is one that some files have and nothing reads: keys and values of layers that take another's.
pub fn unused(spec: &Spec, name: &str) -> bool {
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
    /// The weights, and the routed experts of each layer (empty where a layer is dense), read at `level` or the
    /// highest stored.
    ///
    /// # Errors
    /// `Malformed` where a tensor is missing or has another shape than the specification says.
    pub fn load(
        spec: &Spec,
        from: &dyn Tensors,
        level: Option<Level>,
    ) -> Result<(Weights, Vec<Vec<Expert>>)> {
        let rows = |name: &str| from.rows(name);
        let Ends { embed, head, norm, rope_factors, per_layer } = Ends::read(from, EndsOf::new(spec, &rows))?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        let mut experts = Vec::with_capacity(spec.layers.len());
        for (layer, of) in spec.layers.iter().enumerate() {
            let of = LayerOf { layer, d: spec.d, spec: of, per_layer: spec.per_layer, rows: &rows };
            let mut layer_weights = Layer::read(from, of)?;
            if let Ffn::Moe(Moe { router_norm: Some(norm), .. }) = &mut layer_weights.ffn {
                // The router's input is divided by the root of its width.
                norm.iter_mut().for_each(|w| *w /= (spec.d as f32).sqrt());
            }
            layers.push(layer_weights);
            let routed = from.experts(layer, level)?.unwrap_or_default();
            match of.routed() {
                Some(router) => check_experts(&of, &routed, router.experts)?,
                None if routed.is_empty() => {}
                None => {
                    let what = "the file has experts but its config has none";
                    return Err(Error::malformed(part_name(layer, PARTS[0]), what));
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
        Ok((Weights { embed, layers, norm, head, rope_factors, per_layer }, experts))
    }

    /// Every matrix that is held, the head last and only where it is not the embedding once more (`tied`).
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

    /// Every matrix that is held, those together that one operation of the forward pass multiplies with; the head last, whether
    /// or not it is the embedding once more.
    pub fn matrices(&self) -> Vec<Vec<&Matrix>> {
        let layers = self.layers.iter().flat_map(Layer::matrices);
        let embed = self.embed.held().map(|embed| vec![embed]);
        let inputs = self.per_layer.iter().flat_map(|of| of.embed.held().into_iter().chain([&of.proj]));
        let inputs = inputs.map(|m| vec![m]);
        embed.into_iter().chain(inputs).chain(layers).chain([vec![&self.head]]).collect()
    }

    /// Every vector: norms, biases, factors of the rope.
    pub fn vectors(&self) -> Vec<&[f32]> {
        let mut all = vec![&self.norm[..]];
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

    /// Whether they are unquantized, all of them or none.
    pub fn are_single(&self) -> bool {
        matches!(self.head, Matrix::F32 { .. })
    }

    /// Bytes of a number of keys and values: those of unquantized weights are not rounded.
    pub fn number_bytes(&self) -> usize {
        if self.are_single() { 4 } else { 2 }
    }

    /// Vocabulary size.
    pub fn vocab(&self) -> usize {
        self.embed.rows()
    }
}

impl Layer {
    /// What multiplies the stream behind it.
    pub fn scale(&self) -> f32 {
        self.scale.as_ref().map_or(1.0, |scale| scale[0])
    }

    /// What multiplies the stream behind its feed-forward.
    pub fn ffn_scale(&self) -> f32 {
        if self.per_layer.is_some() { 1.0 } else { self.scale() }
    }

    /// Its matrices but those of routed experts, as [`Weights::matrices`].
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

/// The experts of a layer are as many as its router chooses among, and have the shapes of its stacks.
fn check_experts(of: &LayerOf, experts: &[Expert], want: usize) -> Result<()> {
    let stacks = of.stacks(want);
    if experts.len() != want {
        let reason = format!("{} experts; the config asks for {want}", experts.len());
        return Err(Error::malformed(stacks[0].name.clone(), reason));
    }
    for e in experts {
        for (stack, m) in stacks.iter().zip([&e.gate, &e.up, &e.down]) {
            stack.check(Some(&[want, m.rows(), m.cols()]), "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Metadata;

    /// Biases of experts were taken for a stack of matrices, or dropped.
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
