//! The operands of a backend's operations, other than plain buffers.

mod recurrent;

use crate::experts::Expert;
use crate::quant::Matrix;
pub use recurrent::{ConvCall, Decay, Delta, DeltaCall, Gate, MAX_TAPS, Recur, Recurrent, Rule};

/// One of several products with the same input: `out[t] = matrix · x[t] + bias`.
pub struct Linear<'a, Buf> {
    /// `[rows, cols]`.
    pub matrix: &'a Matrix,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`.
    pub out: &'a mut Buf,
}

/// Several products of one input.
pub struct LinearCall<'a, 'o, Buf> {
    /// `[tokens, cols]`.
    pub x: &'a Buf,
    /// Rows of `x`.
    pub tokens: usize,
    /// A norm to apply to `x` first. The normed rows, which are then multiplied, are written to the second
    /// buffer (`[tokens, cols]`).
    pub norm: Option<(Norm<'a>, &'a mut Buf)>,
    /// The products. If empty, the norm is the result.
    pub outs: &'a mut [Linear<'o, Buf>],
    /// Only with one product: the gated values.
    pub times: Option<Times<'a, Buf>>,
    /// Only with one result: the rows to which it is added. A backend may store the result in `out` on the way.
    pub add: Option<Added<'a, Buf>>,
}

/// A product per head: `out[t, h] = matrix[h] · x[t, h]`, with a part of each head's values. The matrix has
/// the rows of all heads one after the other, `[heads · rows, cols]`.
pub struct HeadsCall<'a, Buf> {
    /// All heads' matrices; `rows` is a multiple of 16.
    pub matrix: &'a Matrix,
    /// Heads.
    pub heads: usize,
    /// `[tokens, heads, cols + kept]`.
    pub x: &'a Buf,
    /// Rows of `x`.
    pub tokens: usize,
    /// Values at the end of each head of `x` that are copied in front of its products in `out`.
    pub kept: usize,
    /// `[tokens, heads, kept + rows]`.
    pub out: &'a mut Buf,
}

impl<Buf> HeadsCall<'_, Buf> {
    /// Rows of a head's matrix.
    pub fn rows(&self) -> usize {
        self.matrix.rows() / self.heads
    }
}

/// The values that a product gates: `out[t] = activation(out[t]) · by[at + t · stride ..]`.
pub struct Times<'a, Buf> {
    /// The activation of the product. [`Activation::Clamped`] is not allowed.
    pub activation: Activation,
    /// The gated values.
    pub by: &'a Buf,
    /// Index of the first row in `by`.
    pub at: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// The rows to which a result is added: `to = scale · (to + result)`.
pub struct Added<'a, Buf> {
    /// `[tokens, rows]`.
    pub to: &'a mut Buf,
    /// A factor for the sum; 1 for products.
    pub scale: f32,
}

/// The tokens of one sequence in a call. They are neighbouring rows, after those of earlier sequences.
pub struct Sequence<'a, Kv> {
    /// The position of the first token.
    pub pos: usize,
    /// The number of tokens.
    pub tokens: usize,
    /// The layer's keys and values for this sequence.
    pub kv: &'a mut Kv,
}

/// Attention of several tokens, each to the earlier tokens of its own sequence.
pub struct AttendCall<'a, 's, Buf, Kv> {
    /// The tokens' projections.
    pub x: Projected<'a, Buf>,
    /// How the projections are prepared. Its rope table covers the last position of every sequence.
    pub how: &'a Placing<'a>,
    /// The number of tokens, all sequences together.
    pub tokens: usize,
    /// The sequences, in row order; at most [`Backend::TOGETHER`](super::Backend::TOGETHER).
    pub sequences: &'a mut (dyn Iterator<Item = Sequence<'s, Kv>> + 's),
    /// Whether another layer has already written the keys and values. Then only queries are prepared.
    pub shared: bool,
    /// The operation itself.
    pub shape: &'a Attention<'a>,
    /// The products around attention to a latent. The output is then `[tokens, heads, values of a head]`, and
    /// queries are `[tokens, heads, values for the latent and rotated values]`.
    pub absorbed: Option<Absorbed<'a>>,
    /// Multiplies the output.
    pub gate: Option<Gated<'a, Buf>>,
    /// `[tokens, heads · values of a value]`, but as long as the queries.
    pub out: &'a mut Buf,
}

/// Numbers whose sigmoid or softplus multiplies the output of attention.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a, Buf> {
    /// `[tokens, heads]` or `[tokens, heads · values of a head]`.
    pub by: &'a Buf,
    /// Whether a head has one number for all of its values.
    pub heads: bool,
    /// Whether the factors are softplus of the numbers.
    pub softplus: bool,
}

/// The per-head products around attention to a latent.
#[derive(Clone, Copy, Debug)]
pub struct Absorbed<'a> {
    /// `[heads · values of the latent, query values for the latent]`: projects queries to the latent.
    pub queries: &'a Matrix,
    /// `[heads · values of a head, values of the latent]`: turns the mixed latents into values of heads.
    pub values: &'a Matrix,
}

/// A feed-forward block that every token passes through.
pub struct FeedCall<'a, Buf> {
    /// `[tokens, d]`.
    pub h: &'a Buf,
    /// Rows of `h`.
    pub tokens: usize,
    /// The block.
    pub block: &'a Expert,
    /// The activation between gate, up and down.
    pub activation: Activation,
    /// `[tokens, 1]`. The block's output is multiplied by its sigmoid.
    pub gate: Option<&'a Buf>,
    /// `[tokens, d]`: the result, or scratch if the result is added to `x`.
    pub y: &'a mut Buf,
    /// The rows to which the result is added, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
}

/// The direction of a copy of a layer's keys and values.
pub enum KvCopy<'a, Kv> {
    /// Out to these bytes, after all earlier operations have finished. Unwritten positions have undefined values.
    Out(&'a Kv, &'a mut [u8]),
    /// In from bytes of [`KvCopy::Out`], of this backend or another.
    In(&'a mut Kv, &'a [u8]),
}

/// The weighted sum of routed experts.
pub struct SumCall<'a, Buf> {
    /// `[tokens · top_k, d]`. A gate of zero marks a row that was not computed.
    pub slots: &'a Buf,
    /// `tokens · top_k` choices.
    pub choices: &'a [Choice],
    /// Choices per token.
    pub top_k: usize,
    /// Values of a row.
    pub d: usize,
    /// `[tokens, d]`: the result, or scratch if the result is added to `x`.
    pub y: &'a mut Buf,
    /// The rows to which the result is added, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
}

/// What the caller does next.
pub enum Flow<'a, 'w> {
    /// The caller waits for something else, such as weights from storage, and more work follows. The
    /// processor may start the operations so far.
    Begin,
    /// A part of a longer computation is complete, and nothing is read back. The processor may start, and the
    /// call may block so that the caller does not run far ahead.
    HandOver,
    /// The caller waits, and then uses these weights in this order. They may be prefetched.
    Soon(&'a mut dyn Iterator<Item = &'w Matrix>),
}

/// An RMS norm, or with a bias a layer norm: the mean is subtracted first.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[values of a row]`.
    pub weight: &'a [f32],
    /// `[values of a row]`: added to the result of a layer norm.
    pub bias: Option<&'a [f32]>,
    /// Added to the mean square.
    pub eps: f32,
}

impl<'a> Norm<'a> {
    /// An RMS norm.
    pub fn rms(weight: &'a [f32], eps: f32) -> Norm<'a> {
        Norm { weight, bias: None, eps }
    }
}

/// One attention operation, without its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of a query or key. The number of values of a value is the cache's.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// With `Some(w)`, position `p` attends to `p − w + 1 ..= p`; otherwise to `0 ..= p`.
    pub window: Option<usize>,
    /// `[heads]`: a score per head that takes part in the softmax but has no value.
    pub sinks: Option<&'a [f32]>,
}

/// Cosines and sines for rotary embedding, in half-split ("NeoX") order, with frequency scaling applied.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Identifies the rotation. If two tables have the same name, the shorter one is a prefix of the longer.
    pub name: u64,
    /// Rotated dimensions of a head, even. The rest of the head is unchanged.
    pub dims: usize,
    /// `[positions, dims / 2]`.
    pub cos: Vec<f32>,
    /// `[positions, dims / 2]`.
    pub sin: Vec<f32>,
}

/// The projections of several tokens.
pub struct Projected<'a, Buf> {
    /// `[tokens, heads · head_dim]`.
    pub q: &'a mut Buf,
    /// `[tokens, kv_heads · head_dim]`.
    pub k: &'a mut Buf,
    /// `[tokens, kv_heads · head_dim]`.
    pub v: &'a mut Buf,
}

/// The steps between projections and attention, in this order: norms of queries and keys, clamping, rope. Late norms
/// come after rope.
#[derive(Clone, Copy, Debug)]
pub struct Placing<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Weights of the queries' norm: per head if as long as a head, else over the whole row.
    pub q_norm: Option<&'a [f32]>,
    /// The same for keys.
    pub k_norm: Option<&'a [f32]>,
    /// Whether queries and keys are normed after rope instead, each over a head.
    pub late_norms: bool,
    /// Whether values are normed, head by head, without weights.
    pub v_norm: bool,
    /// Whether a key is a rotated part and a normed latent, where the latent is also the value.
    pub latent: bool,
    /// Epsilon of all norms.
    pub eps: f32,
    /// Queries, keys and values are clamped to `±limit`.
    pub limit: Option<f32>,
    /// Rotation of queries and keys.
    pub rope: &'a RopeTable,
}

/// How router logits become gate weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts in the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// How logits become scores before the choice.
    pub score: Score,
    /// Whether the chosen experts' weights are divided by their sum.
    pub renormalize: bool,
    /// Multiplies the final weights.
    pub scale: f32,
    /// If experts are chosen only from the best groups.
    pub groups: Option<Groups>,
}

/// Equal groups of neighbouring experts. Experts are chosen from the groups with the highest scores. With
/// [`Score::Softmax`] a group's score is that of its best expert, with [`Score::Sigmoid`] the sum of its best two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of a layer, at most [`MAX_GROUPS`]; divides the number of experts.
    pub count: usize,
    /// Groups from which experts are chosen.
    pub kept: usize,
}

/// The most groups per layer.
pub const MAX_GROUPS: usize = 64;

/// How a router's logits become weights of experts, before the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Score {
    /// A softmax over all experts.
    #[default]
    Softmax,
    /// The sigmoid of each logit.
    Sigmoid {
        /// Added to the sum of the chosen experts' weights.
        eps: f32,
    },
    /// SparseMixer (arXiv 2409.12136): the softmax of each choice is over the experts that no better choice took,
    /// and only over those with nearly the highest logit.
    Mixer {
        /// How far a logit may be below the highest, as a share of the larger magnitude.
        tolerance: f32,
    },
}

/// A router, with a bias for choosing. The chosen experts' weights do not contain the bias.
#[derive(Clone, Copy, Debug)]
pub struct Choosing<'a> {
    /// The router.
    pub router: &'a Router,
    /// `[experts]`.
    pub bias: Option<&'a [f32]>,
}

impl Router {
    /// The router without a bias.
    pub fn unbiased(&self) -> Choosing<'_> {
        Choosing { router: self, bias: None }
    }
}

impl Choosing<'_> {
    /// The scores by which a token's experts are chosen; minus infinity in groups other than the best.
    pub fn standings(&self, logits: &[f32], out: &mut [f32]) {
        match (self.router.score, self.bias) {
            // Not by weight: those that underflow would tie.
            (Score::Softmax, None) | (Score::Mixer { .. }, _) => out.copy_from_slice(logits),
            (Score::Softmax, Some(bias)) => {
                let high = logits.iter().fold(f32::NEG_INFINITY, |high, x| high.max(*x));
                let sum: f32 = logits.iter().map(|x| (x - high).exp()).sum();
                let each = out.iter_mut().zip(logits).zip(bias);
                each.for_each(|((out, x), bias)| *out = (x - high).exp() / sum + bias);
            }
            (Score::Sigmoid { .. }, bias) => {
                out.iter_mut().zip(logits).for_each(|(out, &x)| *out = Self::sigmoid(x));
                out.iter_mut().zip(bias.into_iter().flatten()).for_each(|(out, bias)| *out += bias);
            }
        }
        let Some(Groups { count, kept }) = self.router.groups else { return };
        let size = out.len() / count;
        let mut scores = [0.0; MAX_GROUPS];
        let scores = &mut scores[..count];
        for (score, group) in scores.iter_mut().zip(out.chunks_exact(size)) {
            let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for &x in group {
                if x > best {
                    (best, second) = (x, best);
                } else {
                    second = second.max(x);
                }
            }
            *score = match self.router.score {
                Score::Sigmoid { .. } if size > 1 => best + second,
                _ => best,
            };
        }
        for (g, group) in out.chunks_exact_mut(size).enumerate() {
            let before =
                |&(other, score): &(usize, &f32)| *score > scores[g] || *score == scores[g] && other < g;
            if scores.iter().enumerate().filter(before).count() >= kept {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }

    /// The weight of the expert `chosen` after `taken`, with [`Score::Mixer`].
    pub fn mixed(logits: &[f32], tolerance: f32, taken: &[u32], chosen: u32) -> f32 {
        let left = || (0u32..).zip(logits).filter(|(e, _)| !taken.contains(e)).map(|(_, x)| *x);
        let high = left().fold(f32::NEG_INFINITY, f32::max);
        let near = |x: &f32| (high - x) / x.abs().max(high) <= tolerance;
        let sum: f32 = left().filter(near).map(|x| (x - high).exp()).sum();
        (logits[chosen as usize] - high).exp() / sum
    }

    /// The weight for a single logit.
    pub fn sigmoid(logit: f32) -> f32 {
        1.0 / (1.0 + (-logit).exp())
    }

    /// The factor for the chosen experts' weights, whose sum is `sum`.
    pub fn factor(&self, sum: f32) -> f32 {
        let Router { score, renormalize, scale, .. } = *self.router;
        match score {
            _ if !renormalize => scale,
            Score::Softmax | Score::Mixer { .. } if sum > 0.0 => scale / sum,
            Score::Softmax | Score::Mixer { .. } => scale,
            Score::Sigmoid { eps } => scale / (sum + eps),
        }
    }
}

/// How the gate and up of a feed-forward block become the input of its down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `g · sigmoid(g) · u`.
    #[default]
    Swiglu,
    /// `gelu(g) · u`, with the tanh approximation of gelu (arXiv 2002.05202; 1606.08415, section 2).
    Geglu,
    /// `max(g, 0) · u`. Without a gate `g` is `u`, and this is the squared relu.
    Reglu,
    /// `g' · sigmoid(alpha · g') · (u' + 1)` with `g' = min(g, limit)` and `u'` within `±limit` (gpt-oss).
    Clamped {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Limit on gate and up.
        limit: f32,
    },
}

/// Properties of a layer's experts besides their matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Feed<'a> {
    /// The activation between gate, up and down.
    pub activation: Activation,
    /// Biases of the products.
    pub biases: Option<Biases<'a>>,
    /// `[experts]`: factors of the gate weights.
    pub scales: Option<&'a [f32]>,
}

/// Biases of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Biases<'a> {
    /// `[experts, ff]`.
    pub gate: &'a [f32],
    /// `[experts, ff]`.
    pub up: &'a [f32],
    /// `[experts, d]`.
    pub down: &'a [f32],
}

impl<'a> Biases<'a> {
    /// The biases of gate, up and down of one expert with `ff` and `d` rows.
    pub fn of(&self, expert: u32, ff: usize, d: usize) -> [&'a [f32]; 3] {
        let part = |all: &'a [f32], n: usize| &all[expert as usize * n..][..n];
        [part(self.gate, ff), part(self.up, ff), part(self.down, d)]
    }
}

/// Requirements of a model that a backend may not meet: the maximum over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Values of a key.
    pub head_dim: usize,
    /// Values of a value.
    pub v_dim: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Values of a key in gated delta nets.
    pub key_dim: usize,
}

/// One expert chosen for one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Expert within the layer.
    pub expert: u32,
    /// Its weight in the sum.
    pub gate: f32,
}

/// The routed experts of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The layer. Layer and expert index identify an expert's weights, so a backend may cache them under these.
    pub layer: usize,
    /// Experts in the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens of the call, even those that chose none of its experts.
    pub tokens: usize,
    /// Identifies the inputs. A layer's experts may come in several calls with the same inputs, and other
    /// calls between them. A backend may reuse converted inputs with the same number. 0 means no identity.
    pub inputs: u64,
}

/// The buffers of [`super::Backend::routed`].
pub struct RoutedBufs<'a, Buf> {
    /// Normed input, `[tokens, d]`.
    pub h: &'a Buf,
    /// The router's logits, `[tokens, experts]`.
    pub logits: &'a Buf,
    /// Scratch, `[tokens · top_k, d]`.
    pub slots: &'a mut Buf,
    /// `[tokens, d]`: the result, or scratch if the result is added to `x`.
    pub y: &'a mut Buf,
    /// The rows to which the result is added, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
    /// Where choices are recorded, to be read back later with a result.
    pub history: Option<History<'a, Buf>>,
}

/// The choices of a call's last tokens in one layer.
pub struct History<'a, Buf> {
    /// `[layers, tokens, top_k, 2]`: expert and gate weight, as the bits of f32 values.
    pub buf: &'a mut Buf,
    /// Index of the layer's part in `buf`.
    pub at: usize,
    /// How many of the last tokens are recorded.
    pub tokens: usize,
}

/// The work of one expert: the (token, rank) slots that chose it. Slot `s` belongs to token `s / top_k`.
#[derive(Clone, Copy)]
pub struct ExpertJob<'a> {
    /// Expert within the layer.
    pub index: u32,
    /// Its weights.
    pub expert: &'a Expert,
    /// Slots in ascending order.
    pub slots: &'a [u32],
}
