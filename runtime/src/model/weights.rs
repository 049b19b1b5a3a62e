//! The always-used weights of a model: what each part has is declared here, once.
//!
//! Every shape is checked when it is read, so that `forward` need not.

use super::embedding::Embedding;
use super::rope::Scaling;
use super::spec::{LayerSpec, Spec};
use super::tensors::{Declared, Held, Met, Tensors, part};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::dollop::{PARTS, part_name};
use crate::kernels::{Biases, Router};
use crate::quant::{Level, Matrix};

/// The embedding's name.
pub const EMBEDDING: &str = "token_embd.weight";

/// A layer of a model, as its declarations need it.
#[derive(Clone, Copy)]
pub struct LayerOf<'a> {
    layer: usize,
    d: usize,
    spec: &'a LayerSpec,
    /// Rows of a matrix by name: the width of a feed-forward block is known to the file alone.
    rows: &'a dyn Fn(&str) -> Option<usize>,
}

impl LayerOf<'_> {
    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.layer)
    }

    /// The bias of a projection.
    fn bias(&self, part: &str, len: usize) -> Declared {
        let bias = Declared::vector(self.name(&format!("{part}.bias")), len);
        if self.spec.attention.biases { bias } else { bias.maybe() }
    }

    /// The projection of values, which some families may leave out.
    fn values(&self) -> Declared {
        let a = &self.spec.attention;
        let values = Declared::matrix(self.name("attn_v.weight"), a.kv_width(), self.d);
        if a.keys_as_values { values.maybe() } else { values }
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
        first attn_norm: Vec<f32> = Declared::vector(of.name("attn_norm.weight"), of.d);
        /// `[heads · head_dim, d]`.
        first q: Matrix = Declared::matrix(of.name("attn_q.weight"), of.spec.attention.q_width(), of.d);
        /// `[heads · head_dim]`.
        also q_bias: Option<Vec<f32>> = of.bias("attn_q", of.spec.attention.q_width());
        /// `[kv_heads · head_dim, d]`.
        also k: Matrix = Declared::matrix(of.name("attn_k.weight"), of.spec.attention.kv_width(), of.d);
        /// `[kv_heads · head_dim]`.
        also k_bias: Option<Vec<f32>> = of.bias("attn_k", of.spec.attention.kv_width());
        /// `[kv_heads · head_dim, d]`; without it, keys are values.
        also v: Option<Matrix> = of.values();
        /// `[kv_heads · head_dim]`.
        also v_bias: Option<Vec<f32>> = of.bias("attn_v", of.spec.attention.kv_width());
        /// `[d, heads · head_dim]`.
        first o: Matrix = Declared::matrix(of.name("attn_output.weight"), of.d, of.spec.attention.q_width());
        /// `[d]`.
        also o_bias: Option<Vec<f32>> = of.bias("attn_output", of.d);
        /// `[d]`: of what attention gives.
        first attn_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_attention_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// Over each head (`[head_dim]`) or the whole row (`[heads · head_dim]`).
        first q_norm: Option<Vec<f32>> = Declared::vector(of.name("attn_q_norm.weight"), of.spec.attention.head_dim)
            .or(of.spec.attention.q_width())
            .maybe();
        /// Over each head (`[head_dim]`) or the whole row (`[kv_heads · head_dim]`).
        first k_norm: Option<Vec<f32>> = Declared::vector(of.name("attn_k_norm.weight"), of.spec.attention.head_dim)
            .or(of.spec.attention.kv_width())
            .maybe();
        /// `[heads]`.
        first sinks: Option<Vec<f32>> =
            Declared::vector(of.name("attn_sinks.weight"), of.spec.attention.heads).only_if(of.spec.attention.sinks);
        /// `[d]`.
        first ffn_norm: Vec<f32> = Declared::vector(of.name("ffn_norm.weight"), of.d);
        /// Experts or one dense block.
        first ffn: Ffn = of;
        /// `[d]`: of what they give.
        first ffn_post_norm: Option<Vec<f32>> =
            Declared::vector(of.name("post_ffw_norm.weight"), of.d).only_if(of.spec.sandwich);
        /// `[1]`: multiplies the stream behind the layer.
        first scale: Option<Vec<f32>> =
            Declared::vector(of.name("layer_output_scale.weight"), 1).maybe_if(of.spec.scaled);
    }
}

/// The feed-forward half of a block.
#[derive(Clone, Debug)]
// There is one a layer.
#[allow(clippy::large_enum_variant)]
pub enum Ffn {
    /// One block for every token.
    Dense(Expert),
    /// Routed experts.
    Moe(Moe),
}

/// A layer with experts.
#[derive(Clone, Copy)]
pub struct MoeOf<'a> {
    layer: LayerOf<'a>,
    router: Router,
}

part! {
    /// Routing and the shared expert; the routed experts come through `ExpertSource`.
    Moe(of: MoeOf) {
        /// `[experts, d]`, f32.
        first router: Matrix = Declared::small(of.layer.name("ffn_gate_inp.weight"), of.router.experts, of.layer.d);
        /// `[1, d]`: the shared expert's output is multiplied by the sigmoid of this product.
        also shared_gate: Option<Matrix> = Declared::small(of.layer.name("ffn_gate_inp_shexp.weight"), 1, of.layer.d).maybe();
        /// `[experts]`.
        also router_bias: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_gate_inp.bias"), of.router.experts).only_if(of.layer.spec.ffn.biases);
        /// `[d]`: of the norm of the router's own input.
        first router_norm: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_gate_inp.scale"), of.layer.d).only_if(of.layer.spec.ffn.beside);
        /// `[experts]`: they multiply gates.
        first scales: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_down_exps.scale"), of.router.experts).only_if(of.layer.spec.ffn.beside);
        /// Of the routed experts.
        first biases: Option<ExpertBiases> = of;
        /// An expert that every token uses.
        first shared: Option<Expert> = of.layer.shared();
        /// A dense block beside the routed experts.
        first beside: Option<Beside> = of;
    }
}

part! {
    /// A dense block beside routed experts. The layer's norm before the feed-forward is this block's.
    Beside(of: MoeOf) {
        /// The block.
        first block: Expert = of.layer.block("");
        /// `[d]`: of what it gives.
        first post_norm: Vec<f32> = Declared::vector(of.layer.name("post_ffw_norm_1.weight"), of.layer.d);
        /// `[d]`: of what goes to the experts.
        first experts_norm: Vec<f32> = Declared::vector(of.layer.name("pre_ffw_norm_2.weight"), of.layer.d);
        /// `[d]`: of what they give.
        first experts_post_norm: Vec<f32> = Declared::vector(of.layer.name("post_ffw_norm_2.weight"), of.layer.d);
    }
}

part! {
    /// Biases of routed experts.
    ExpertBiases(of: MoeOf) {
        /// `[experts, ff]`.
        first gate: Vec<f32> = of.bias("gate", of.layer.width("_exps").unwrap_or(0));
        /// `[experts, ff]`.
        first up: Vec<f32> = of.bias("up", of.layer.width("_exps").unwrap_or(0));
        /// `[experts, d]`.
        first down: Vec<f32> = of.bias("down", of.layer.d);
    }
}

impl ExpertBiases {
    /// As kernels take them.
    pub fn slices(&self) -> Biases<'_> {
        Biases { gate: &self.gate, up: &self.up, down: &self.down }
    }
}

impl MoeOf<'_> {
    fn bias(&self, part: &str, rows: usize) -> Declared {
        Declared::small(self.layer.name(&format!("ffn_{part}_exps.bias")), self.router.experts, rows)
    }
}

impl Held for Option<ExpertBiases> {
    type Of<'o> = MoeOf<'o>;

    fn declare(of: MoeOf<'_>, to: &mut Vec<Declared>) {
        if of.layer.spec.ffn.biases {
            ExpertBiases::declare(of, to);
        }
    }

    fn read(from: &dyn Tensors, of: MoeOf<'_>) -> Result<Self> {
        of.layer.spec.ffn.biases.then(|| ExpertBiases::read(from, of)).transpose()
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|biases| biases.each(met));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.iter_mut().for_each(|biases| biases.each_mut(met));
    }
}

impl Moe {
    /// The block that every token goes through, beside the routed experts or shared.
    pub fn always(&self) -> Option<&Expert> {
        self.shared.as_ref().or(self.beside.as_ref().map(|beside| &beside.block))
    }
}

impl Held for Option<Beside> {
    type Of<'o> = MoeOf<'o>;

    fn declare(of: MoeOf<'_>, to: &mut Vec<Declared>) {
        if of.layer.spec.ffn.beside {
            Beside::declare(of, to);
        }
    }

    fn read(from: &dyn Tensors, of: MoeOf<'_>) -> Result<Self> {
        of.layer.spec.ffn.beside.then(|| Beside::read(from, of)).transpose()
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|beside| beside.each(met));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.iter_mut().for_each(|beside| beside.each_mut(met));
    }
}

impl Held for Ffn {
    type Of<'o> = LayerOf<'o>;

    fn declare(of: LayerOf<'_>, to: &mut Vec<Declared>) {
        match of.routed() {
            None => Expert::declare(of.block(""), to),
            Some(router) => {
                Moe::declare(MoeOf { layer: of, router }, to);
                to.extend(of.stacks(router.experts));
            }
        }
    }

    fn read(from: &dyn Tensors, of: LayerOf<'_>) -> Result<Ffn> {
        Ok(match of.routed() {
            None => Ffn::Dense(Expert::read(from, of.block(""))?),
            Some(router) => Ffn::Moe(Moe::read(from, MoeOf { layer: of, router })?),
        })
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        match self {
            Ffn::Dense(block) => block.each(met),
            Ffn::Moe(moe) => moe.each(met),
        }
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        match self {
            Ffn::Dense(block) => block.each_mut(met),
            Ffn::Moe(moe) => moe.each_mut(met),
        }
    }
}

impl Held for Expert {
    type Of<'o> = [Declared; 3];

    fn declare(of: [Declared; 3], to: &mut Vec<Declared>) {
        to.extend(of);
    }

    fn read(from: &dyn Tensors, [gate, up, down]: [Declared; 3]) -> Result<Expert> {
        let (gate, up) = (Matrix::read(from, gate)?, Matrix::read(from, up)?);
        Ok(Expert { gate, up, down: Matrix::read(from, down)?, place: None })
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        [&self.gate, &self.up, &self.down].into_iter().for_each(|m| met(Met::Matrix(m)));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        [&mut self.gate, &mut self.up, &mut self.down].into_iter().for_each(met);
    }
}

impl Held for Option<Expert> {
    type Of<'o> = [Declared; 3];

    fn declare(of: [Declared; 3], to: &mut Vec<Declared>) {
        to.extend(of);
    }

    fn read(from: &dyn Tensors, of: [Declared; 3]) -> Result<Self> {
        if of.iter().any(Declared::is_known) { Expert::read(from, of).map(Some) } else { Ok(None) }
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|e| e.each(met));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.iter_mut().for_each(|e| e.each_mut(met));
    }
}

/// A model beside its layers, as its declarations need it.
#[derive(Clone, Copy)]
pub struct EndsOf<'a> {
    spec: &'a Spec,
    vocab: usize,
}

impl EndsOf<'_> {
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
    }
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
}

/// Every tensor that a model has. `rows` gives the rows of a matrix that the file has. A tensor that is not among them would be ignored
/// without a word: it is an error.
pub fn declared(spec: &Spec, rows: &dyn Fn(&str) -> Option<usize>) -> Vec<Declared> {
    let mut all = Vec::new();
    Ends::declare(EndsOf::new(spec, rows), &mut all);
    for (layer, of) in spec.layers.iter().enumerate() {
        Layer::declare(LayerOf { layer, d: spec.d, spec: of, rows }, &mut all);
        // Old files repeat the rope's frequencies, which follow from the keys.
        all.push(Declared::vector(format!("blk.{layer}.attn_rot_embd.weight"), 0).maybe());
    }
    all.retain(Declared::is_known);
    all
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
        let Ends { embed, head, norm, rope_factors } = Ends::read(from, EndsOf::new(spec, &rows))?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        let mut experts = Vec::with_capacity(spec.layers.len());
        for (layer, of) in spec.layers.iter().enumerate() {
            let of = LayerOf { layer, d: spec.d, spec: of, rows: &rows };
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
        Ok((Weights { embed: Embedding::Held(embed), layers, norm, head, rope_factors }, experts))
    }

    /// Every matrix that is held, the head last and only where it is not the embedding once more (`tied`).
    pub fn matrices_mut(&mut self, tied: bool) -> Vec<&mut Matrix> {
        let mut all = Vec::new();
        if let Embedding::Held(embed) = &mut self.embed {
            all.push(embed);
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
        embed.into_iter().chain(layers).chain([vec![&self.head]]).collect()
    }

    /// Every vector: norms, biases, factors of the rope.
    pub fn vectors(&self) -> Vec<&[f32]> {
        let mut all = vec![&self.norm[..]];
        all.extend(self.rope_factors.as_deref());
        let mut met = |met| {
            if let Met::Vector(v) = met {
                all.push(v)
            }
        };
        self.layers.iter().for_each(|layer| layer.each(&mut met));
        all
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
