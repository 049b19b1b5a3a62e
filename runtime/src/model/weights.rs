//! The always-used weights of a model, and where they come from.
//!
//! [`Tensors`] is what a file of weights can do for the model, whatever its format; the Dollop file and the
//! unquantized reference both implement it. Every shape is checked here, once, so that `forward` need not.

use super::config::Config;
use super::embedding::Embedding;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::quant::{Level, Matrix};

/// The embedding's name.
pub const EMBEDDING: &str = "token_embd.weight";

/// A source of named tensors, under their canonical (GGUF) names.
pub trait Tensors {
    /// The file's keys.
    fn metadata(&self) -> &Metadata;

    /// A small tensor (norm, bias, router) as flat f32; `None` where the file has none of this name.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>>;

    /// A matrix `[rows, cols]`.
    fn matrix(&self, name: &str) -> Result<Option<Matrix>>;

    /// The experts of a layer, read at `level` or else at the highest level stored; `None` where the layer has none.
    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>>;
}

/// A projection with its bias.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `[rows, cols]`.
    pub matrix: Matrix,
    /// `[rows]`.
    pub bias: Option<Vec<f32>>,
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

/// Routing and the shared expert; the routed experts come through `ExpertSource`.
#[derive(Clone, Debug)]
pub struct Moe {
    /// `[experts, d]`, f32.
    pub router: Matrix,
    /// An expert that every token uses.
    pub shared: Option<Expert>,
    /// `[1, d]`: the shared expert's output is multiplied by the sigmoid of this product.
    pub shared_gate: Option<Matrix>,
}

/// One block.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[d]`.
    pub attn_norm: Vec<f32>,
    /// `[heads · head_dim, d]`.
    pub q: Projection,
    /// `[kv_heads · head_dim, d]`.
    pub k: Projection,
    /// `[kv_heads · head_dim, d]`.
    pub v: Projection,
    /// `[d, heads · head_dim]`.
    pub o: Projection,
    /// Over each head (`[head_dim]`) or the whole row (`[heads · head_dim]`).
    pub q_norm: Option<Vec<f32>>,
    /// Over each head (`[head_dim]`) or the whole row (`[kv_heads · head_dim]`).
    pub k_norm: Option<Vec<f32>>,
    /// `[d]`.
    pub ffn_norm: Vec<f32>,
    /// Experts or one dense block.
    pub ffn: Ffn,
}

impl Layer {
    /// Its matrices but those of routed experts, as [`Weights::matrices`].
    pub fn matrices(&self) -> Vec<Vec<&Matrix>> {
        let Layer { q, k, v, o, ffn, .. } = self;
        let mut all = vec![vec![&q.matrix, &k.matrix, &v.matrix], vec![&o.matrix]];
        let always = match ffn {
            Ffn::Dense(e) => Some(e),
            Ffn::Moe(moe) => {
                all.push([&moe.router].into_iter().chain(&moe.shared_gate).collect());
                moe.shared.as_ref()
            }
        };
        all.extend(always.map(|e| vec![&e.gate, &e.up, &e.down]));
        all
    }

    fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        let Layer { q, k, v, o, .. } = self;
        let biases = [q, k, v, o].into_iter().filter_map(|p| p.bias.as_deref());
        let norms = [&self.q_norm, &self.k_norm].into_iter().filter_map(|n| n.as_deref());
        [&self.attn_norm[..], &self.ffn_norm].into_iter().chain(biases).chain(norms)
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

/// Reads tensors by name and insists on their shapes.
struct Reader<'a> {
    tensors: &'a dyn Tensors,
}

impl Reader<'_> {
    fn optional_vector(&self, name: &str, lens: &[usize]) -> Result<Option<Vec<f32>>> {
        let vector = self.tensors.vector(name)?;
        if let Some(v) = &vector
            && !lens.contains(&v.len())
        {
            let want = lens.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ");
            let reason = format!("{} values; the config asks for {want}", v.len());
            return Err(Error::malformed(format!("tensor `{name}`"), reason));
        }
        Ok(vector)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.optional_vector(name, &[len])?.ok_or_else(|| missing(name))
    }

    fn optional_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Matrix>> {
        let matrix = self.tensors.matrix(name)?;
        if let Some(m) = &matrix {
            check_shape(name, m, rows, cols)?;
        }
        Ok(matrix)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.optional_matrix(name, rows, cols)?.ok_or_else(|| missing(name))
    }

    fn projection(&self, name: &str, rows: usize, cols: usize) -> Result<Projection> {
        let matrix = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = self.optional_vector(&format!("{name}.bias"), &[rows])?;
        Ok(Projection { matrix, bias })
    }

    /// A gated feed-forward whose width only the file knows.
    fn ffn(&self, layer: usize, suffix: &str, d: usize) -> Result<Option<Expert>> {
        let name = |part: &str| format!("blk.{layer}.ffn_{part}{suffix}.weight");
        let Some(gate) = self.tensors.matrix(&name("gate"))? else { return Ok(None) };
        let ff = gate.rows();
        check_shape(&name("gate"), &gate, ff, d)?;
        let up = self.matrix(&name("up"), ff, d)?;
        let down = self.matrix(&name("down"), d, ff)?;
        Ok(Some(Expert { gate, up, down, place: None }))
    }

    /// A small matrix that stays f32: `[rows, cols]`.
    fn f32_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Matrix>> {
        let data = self.optional_vector(name, &[rows * cols])?;
        Ok(data.map(|data| Matrix::F32 { rows, cols, data: data.into() }))
    }
}

fn missing(name: &str) -> Error {
    Error::malformed(
        format!("tensor `{name}`"),
        "the file has no such tensor; was it cut short or made for another model?",
    )
}

fn check_shape(name: &str, m: &Matrix, rows: usize, cols: usize) -> Result<()> {
    if (m.rows(), m.cols()) == (rows, cols) {
        return Ok(());
    }
    let reason = format!("is {}x{}; the config asks for {rows}x{cols}", m.rows(), m.cols());
    Err(Error::malformed(format!("tensor `{name}`"), reason))
}

impl Weights {
    /// The weights, and the routed experts of each layer (empty where a layer is dense), read at `level` or the
    /// highest stored.
    ///
    /// # Errors
    /// `Malformed` where a tensor is missing or has another shape than the config says.
    pub fn load(
        config: &Config,
        tensors: &dyn Tensors,
        level: Option<Level>,
    ) -> Result<(Weights, Vec<Vec<Expert>>)> {
        let read = Reader { tensors };
        let embed = tensors.matrix(EMBEDDING)?.ok_or_else(|| missing(EMBEDDING))?;
        check_shape(EMBEDDING, &embed, embed.rows(), config.d)?;
        let head =
            read.optional_matrix("output.weight", embed.rows(), config.d)?.unwrap_or_else(|| embed.clone());
        let mut layers = Vec::with_capacity(config.layers);
        let mut experts = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let (layer, routed) = load_layer(config, &read, i, level)?;
            layers.push(layer);
            experts.push(routed);
        }
        let norm = read.vector("output_norm.weight", config.d)?;
        let rope_factors = read.optional_vector("rope_freqs.weight", &[config.rope.dims / 2])?;
        if rope_factors.iter().flatten().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err(Error::malformed(
                "tensor `rope_freqs.weight`",
                "a factor is not a number above zero",
            ));
        }
        let embed = Embedding::Held(embed);
        Ok((Weights { embed, layers, norm, head, rope_factors }, experts))
    }

    /// Every matrix that is held, the head last and only where it is not the embedding once more (`tied`).
    pub fn matrices_mut(&mut self, tied: bool) -> Vec<&mut Matrix> {
        let mut all = Vec::new();
        if let Embedding::Held(embed) = &mut self.embed {
            all.push(embed);
        }
        for layer in &mut self.layers {
            all.extend([&mut layer.q, &mut layer.k, &mut layer.v, &mut layer.o].map(|p| &mut p.matrix));
            let always = match &mut layer.ffn {
                Ffn::Dense(e) => Some(e),
                Ffn::Moe(moe) => {
                    all.push(&mut moe.router);
                    all.extend(&mut moe.shared_gate);
                    moe.shared.as_mut()
                }
            };
            all.extend(always.into_iter().flat_map(|e| [&mut e.gate, &mut e.up, &mut e.down]));
        }
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
    pub fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        let layers = self.layers.iter().flat_map(Layer::vectors);
        layers.chain([&self.norm[..]]).chain(self.rope_factors.as_deref())
    }

    /// Vocabulary size.
    pub fn vocab(&self) -> usize {
        self.embed.rows()
    }
}

fn load_layer(
    config: &Config,
    read: &Reader,
    i: usize,
    level: Option<Level>,
) -> Result<(Layer, Vec<Expert>)> {
    let name = |part: &str| format!("blk.{i}.{part}");
    let (d, q_width, kv_width) = (config.d, config.heads * config.head_dim, config.kv_width());
    let routed = read.tensors.experts(i, level)?.unwrap_or_default();
    let ffn = match (config.router, routed.is_empty()) {
        (Some(router), false) => {
            check_experts(i, &routed, router.experts, d)?;
            let gate_inp = name("ffn_gate_inp.weight");
            Ffn::Moe(Moe {
                router: read.f32_matrix(&gate_inp, router.experts, d)?.ok_or_else(|| missing(&gate_inp))?,
                shared: read.ffn(i, "_shexp", d)?,
                shared_gate: read.f32_matrix(&name("ffn_gate_inp_shexp.weight"), 1, d)?,
            })
        }
        (None, false) => {
            return Err(Error::malformed(
                name("ffn_gate_exps.weight"),
                "the file has experts but its config has none",
            ));
        }
        (_, true) => Ffn::Dense(read.ffn(i, "", d)?.ok_or_else(|| missing(&name("ffn_gate.weight")))?),
    };
    let layer = Layer {
        attn_norm: read.vector(&name("attn_norm.weight"), d)?,
        q: read.projection(&name("attn_q"), q_width, d)?,
        k: read.projection(&name("attn_k"), kv_width, d)?,
        v: read.projection(&name("attn_v"), kv_width, d)?,
        o: read.projection(&name("attn_output"), d, q_width)?,
        q_norm: read.optional_vector(&name("attn_q_norm.weight"), &[config.head_dim, q_width])?,
        k_norm: read.optional_vector(&name("attn_k_norm.weight"), &[config.head_dim, kv_width])?,
        ffn_norm: read.vector(&name("ffn_norm.weight"), d)?,
        ffn,
    };
    Ok((layer, routed))
}

fn check_experts(layer: usize, experts: &[Expert], want: usize, d: usize) -> Result<()> {
    if experts.len() != want {
        let reason = format!("{} experts; the config asks for {want}", experts.len());
        return Err(Error::malformed(format!("blk.{layer}.ffn_gate_exps.weight"), reason));
    }
    let ff = experts[0].gate.rows();
    for e in experts {
        check_shape(&format!("blk.{layer}.ffn_gate_exps.weight"), &e.gate, ff, d)?;
        check_shape(&format!("blk.{layer}.ffn_up_exps.weight"), &e.up, ff, d)?;
        check_shape(&format!("blk.{layer}.ffn_down_exps.weight"), &e.down, d, ff)?;
    }
    Ok(())
}
