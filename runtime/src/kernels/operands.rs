//! The operands of operations, beside buffers.

use crate::experts::Expert;
use crate::quant::Matrix;

/// One product of several that share their input: `out[t] = matrix · x[t] + bias`.
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
    /// Its rows.
    pub tokens: usize,
    /// A norm of `x`; the normed rows, which are multiplied in its place, are written to the second buffer (`[tokens,
    /// cols]`).
    pub norm: Option<(Norm<'a>, &'a mut Buf)>,
    /// What it is multiplied with. With nothing, the norm is the result.
    pub outs: &'a mut [Linear<'o, Buf>],
    /// With one product: what it gates.
    pub times: Option<Times<'a, Buf>>,
    /// With one result: it is added to these rows, by way of its own where the backend needs it.
    pub add: Option<Added<'a, Buf>>,
}

/// A product for each head, of a matrix that has those of all heads behind each other, `[heads · rows, cols]`:
/// `out[t, h] = matrix[h] · x[t, h]`, of a part of what each head has.
pub struct HeadsCall<'a, Buf> {
    /// The matrix; `rows` is a multiple of 16.
    pub matrix: &'a Matrix,
    /// Heads.
    pub heads: usize,
    /// `[tokens, heads, cols + kept]`.
    pub x: &'a Buf,
    /// Its rows.
    pub tokens: usize,
    /// Values of a head of `x` behind those that are multiplied, which stand before the products in `out`.
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

/// What a result gates: `out[t] = activation(out[t]) · by[at + t · stride ..]`.
pub struct Times<'a, Buf> {
    /// Of the result. None that is limited.
    pub activation: Activation,
    /// What it multiplies.
    pub by: &'a Buf,
    /// Where the first row of that begins.
    pub at: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// Where a result is added: `to = scale · (to + result)`.
pub struct Added<'a, Buf> {
    /// `[tokens, rows]`.
    pub to: &'a mut Buf,
    /// Multiplies the sum; 1 for products.
    pub scale: f32,
}

/// Tokens of one sequence among the rows of a call: neighbours, behind those of the sequences before.
pub struct Sequence<'a, Kv> {
    /// The position of the first.
    pub pos: usize,
    /// How many they are.
    pub tokens: usize,
    /// The layer's keys and values of this sequence.
    pub kv: &'a mut Kv,
}

/// Attention of some tokens, each to those before it in its own sequence.
pub struct AttendCall<'a, 's, Buf, Kv> {
    /// The tokens' projections.
    pub x: Projected<'a, Buf>,
    /// How the projections are prepared. The rotation reaches the last position of every sequence.
    pub how: &'a Placing<'a>,
    /// The number of tokens, all sequences together.
    pub tokens: usize,
    /// Whose they are, in order; at most [`Backend::TOGETHER`](super::Backend::TOGETHER).
    pub sequences: &'a mut (dyn Iterator<Item = Sequence<'s, Kv>> + 's),
    /// Keys and values are another layer's, and there already: only queries are placed.
    pub shared: bool,
    /// The operation itself.
    pub shape: &'a Attention<'a>,
    /// What stands before and behind attention to a latent. The queries are then `[tokens, heads, values that meet the latent and
    /// values that turn]`, and what comes out is `[tokens, heads, values of a head]`.
    pub absorbed: Option<Absorbed<'a>>,
    /// `[tokens, heads · head_dim]`: the sigmoid of these multiplies what comes out.
    pub gate: Option<&'a Buf>,
    /// `[tokens, heads · values of a value]`; as long as the queries.
    pub out: &'a mut Buf,
}

/// The products of heads around attention to a latent.
#[derive(Clone, Copy, Debug)]
pub struct Absorbed<'a> {
    /// `[heads · values of the latent, values that meet it]`: brings queries to the latent.
    pub queries: &'a Matrix,
    /// `[heads · values of a head, values of the latent]`: makes values of what comes out.
    pub values: &'a Matrix,
}

/// A gated delta net of some tokens (arXiv 2412.06464), between its projections.
pub struct DeltaCall<'a, 's, Buf> {
    /// Queries, keys and values, `[tokens, channels]`.
    pub qkv: &'a Buf,
    /// `[tokens, v_heads · v_dim]`: the SiLU of these multiplies what is normed.
    pub z: &'a Buf,
    /// `[tokens, v_heads]`: the sigmoid of these is how much of a correction is written.
    pub beta: &'a Buf,
    /// `[tokens, v_heads]`: how long a step is, for what fades with each.
    pub alpha: &'a Buf,
    /// Whose tokens these are. A slot of a state is what is kept of the tokens before a position ([`Delta::state_values`]).
    pub sequences: &'a mut (dyn Iterator<Item = Recurrent<'s, Buf>> + 's),
    /// The operation itself.
    pub shape: &'a Delta<'a>,
    /// Scratch, `[tokens, channels]`.
    pub mixed: &'a mut Buf,
    /// `[tokens, v_heads · v_dim]`.
    pub out: &'a mut Buf,
}

/// Tokens of one sequence among the rows of a call, as [`Sequence`], for a mixer with a state.
pub struct Recurrent<'a, Buf> {
    /// How many they are.
    pub tokens: usize,
    /// `[slots, values of a slot]`.
    pub state: &'a mut Buf,
    /// The slot of the tokens before; zeros where there are none.
    pub from: Option<usize>,
    /// Another slot, which is written.
    pub to: usize,
}

/// A mixer whose state stands for one position: a slot of it is read, and another written.
pub enum Recur<'a, 's, Buf> {
    /// A gated short convolution.
    Conv(ConvCall<'a, 's, Buf>),
    /// A gated delta net.
    Delta(DeltaCall<'a, 's, Buf>),
}

/// Inputs that the convolution of a gated delta net sees, at most.
pub const MAX_TAPS: usize = 4;

/// A gated delta net beside its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta<'a> {
    /// Heads of queries and keys; divides `v_heads`.
    pub k_heads: usize,
    /// Heads of values, each with a memory of its own.
    pub v_heads: usize,
    /// Values of a key.
    pub k_dim: usize,
    /// Values of a value, a multiple of 16.
    pub v_dim: usize,
    /// Inputs that the convolution sees, the newest last: 2 to [`MAX_TAPS`].
    pub taps: usize,
    /// Whether value head `j` uses key head `j` modulo their number, instead of neighbours sharing one.
    pub tiled: bool,
    /// `[channels, taps]`: of the convolution.
    pub conv: &'a [f32],
    /// `[v_heads]`, below zero: how fast memory fades.
    pub a: &'a [f32],
    /// `[v_heads]`: added to the length of a step.
    pub dt: &'a [f32],
    /// `[v_dim]`: of the norm of each head.
    pub norm: &'a [f32],
    /// Of that norm.
    pub eps: f32,
}

impl Delta<'_> {
    /// Values of queries, keys and values of a token.
    pub fn channels(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// Values of the state: the last inputs of the convolution, `[taps − 1, channels]`, oldest first, and the memory of the heads,
    /// `[v_heads, k_dim, v_dim]`.
    pub fn state_values(&self) -> usize {
        (self.taps - 1) * self.channels() + self.v_heads * self.k_dim * self.v_dim
    }

    /// The key head that a value head uses.
    pub fn key_head(&self, head: usize) -> usize {
        if self.tiled { head % self.k_heads } else { head / (self.v_heads / self.k_heads) }
    }
}

/// A block that every token goes through.
pub struct FeedCall<'a, Buf> {
    /// `[tokens, d]`.
    pub h: &'a Buf,
    /// Its rows.
    pub tokens: usize,
    /// The block.
    pub block: &'a Expert,
    /// Between gate, up and down.
    pub activation: Activation,
    /// `[tokens, 1]`: the sigmoid of these multiplies what the block gives.
    pub gate: Option<&'a Buf>,
    /// `[tokens, d]`: the result, or scratch where it is added.
    pub y: &'a mut Buf,
    /// What it is added to, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
}

/// A gated short convolution over tokens, channel by channel: of `[B, C, v]` of each token, `C ⊙ conv(B ⊙ v)`, where a token's
/// last tap meets its own `B ⊙ v`.
pub struct ConvCall<'a, 's, Buf> {
    /// `[tokens, 3 · d]`: B, C and v behind each other.
    pub x: &'a Buf,
    /// Whose tokens these are. A slot of a state is `[taps - 1, d]`: the last inputs `B ⊙ v`, oldest first.
    pub sequences: &'a mut (dyn Iterator<Item = Recurrent<'s, Buf>> + 's),
    /// `[d, taps]`, the newest last.
    pub weight: &'a [f32],
    /// `[d]`, added to the sums.
    pub bias: Option<&'a [f32]>,
    /// Values of `B ⊙ v` that a token sees.
    pub taps: usize,
    /// `[tokens, d]`.
    pub out: &'a mut Buf,
}

/// A part of a layer's keys and values on its way out of a cache or into one.
pub enum KvCopy<'a, Kv> {
    /// To these bytes, after everything before it has finished. Positions that were not written are whatever they are.
    Out(&'a Kv, &'a mut [u8]),
    /// From what [`KvCopy::Out`] gave, of this backend or another.
    In(&'a mut Kv, &'a [u8]),
}

/// The weighted sum of routed experts.
pub struct SumCall<'a, Buf> {
    /// `[tokens · top_k, d]`. A gate of zero marks a row that was not computed.
    pub slots: &'a Buf,
    /// `tokens · top_k` of them.
    pub choices: &'a [Choice],
    /// Choices of a token.
    pub top_k: usize,
    /// Values of a row.
    pub d: usize,
    /// `[tokens, d]`: the result, or scratch where it is added.
    pub y: &'a mut Buf,
    /// What it is added to, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
}

/// What the caller does next.
pub enum Flow<'a, 'w> {
    /// It waits elsewhere, for example for weights from storage, and more work follows: the processor may start with
    /// what it has.
    Begin,
    /// A part of a longer computation is complete, and nothing is read back: the processor may start, and the caller is
    /// kept from running far ahead.
    HandOver,
    /// It waits, and will use these weights next, in order: they may be prefetched.
    Soon(&'a mut dyn Iterator<Item = &'w Matrix>),
}

/// An RMS norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[values of a row]`.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// One attention operation beside its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of a query and a key; those of a value are the cache's.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// With `Some(w)`, position `p` sees `p − w + 1 ..= p`; otherwise `0 ..= p`.
    pub window: Option<usize>,
    /// `[heads]`: a score of each head that joins the softmax and has no value.
    pub sinks: Option<&'a [f32]>,
}

/// Cosines and sines for rotary embedding, in half-split ("NeoX") order, any frequency scaling already applied.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Identifies the rotation. Of two tables with one name, the shorter is a prefix of the longer.
    pub name: u64,
    /// Rotated dimensions of a head, even; the rest of the head passes through.
    pub dims: usize,
    /// `[positions, dims / 2]`.
    pub cos: Vec<f32>,
    /// `[positions, dims / 2]`.
    pub sin: Vec<f32>,
}

/// The projections of some tokens.
pub struct Projected<'a, Buf> {
    /// `[tokens, heads · head_dim]`.
    pub q: &'a mut Buf,
    /// `[tokens, kv_heads · head_dim]`.
    pub k: &'a mut Buf,
    /// `[tokens, kv_heads · head_dim]`.
    pub v: &'a mut Buf,
}

/// The steps between projections and attention, in this order: norms of queries and keys, limits, rope.
#[derive(Clone, Copy, Debug)]
pub struct Placing<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Over each head if it is as long as a head, else over the row.
    pub q_norm: Option<&'a [f32]>,
    /// Likewise.
    pub k_norm: Option<&'a [f32]>,
    /// Values are normed, head by head, without weights.
    pub v_norm: bool,
    /// Keys are a part that turns and a latent, which is normed and is the value too: there are no others.
    pub latent: bool,
    /// Of all norms.
    pub eps: f32,
    /// Queries, keys and values are limited to `±limit`.
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
    /// What becomes of logits before the choice.
    pub score: Score,
    /// Whether the chosen weights are divided by their sum.
    pub renormalize: bool,
    /// Multiplies the final weights.
    pub scale: f32,
    /// Where experts of some groups alone are chosen.
    pub groups: Option<Groups>,
}

/// Groups of neighbouring experts, as many in each. Those with the highest scores are chosen among: with [`Score::Softmax`] a
/// group's score is that of its best expert, with [`Score::Sigmoid`] the sum of its best two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of a layer, at most [`MAX_GROUPS`]; divides the number of experts.
    pub count: usize,
    /// Those that are chosen among.
    pub kept: usize,
}

/// Groups that a layer's experts may be in.
pub const MAX_GROUPS: usize = 64;

/// What a router's logits become: weights of experts, before some are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Score {
    /// A softmax over all experts.
    #[default]
    Softmax,
    /// Each its sigmoid.
    Sigmoid {
        /// Added to the sum of the chosen ones.
        eps: f32,
    },
}

/// A router, and what it adds to the scores that it chooses by: the weights of those chosen are without.
#[derive(Clone, Copy, Debug)]
pub struct Choosing<'a> {
    /// How it chooses.
    pub router: &'a Router,
    /// `[experts]`; with [`Score::Sigmoid`] alone.
    pub bias: Option<&'a [f32]>,
}

impl Router {
    /// The router alone.
    pub fn unbiased(&self) -> Choosing<'_> {
        Choosing { router: self, bias: None }
    }
}

impl Choosing<'_> {
    /// What the experts of a token are chosen by: below everything where their group is none of the best.
    pub fn standings(&self, logits: &[f32], out: &mut [f32]) {
        for (expert, (out, &logit)) in out.iter_mut().zip(logits).enumerate() {
            *out = self.standing(expert as u32, logit);
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

    /// What an expert is chosen by, whatever its group.
    fn standing(&self, expert: u32, logit: f32) -> f32 {
        match self.router.score {
            Score::Softmax => logit,
            Score::Sigmoid { .. } => {
                Self::sigmoid(logit) + self.bias.map_or(0.0, |bias| bias[expert as usize])
            }
        }
    }

    /// The weight of a logit alone.
    pub fn sigmoid(logit: f32) -> f32 {
        1.0 / (1.0 + (-logit).exp())
    }

    /// What the weights of those chosen are multiplied with.
    pub fn factor(&self, sum: f32) -> f32 {
        let Router { score, renormalize, scale, .. } = *self.router;
        match score {
            _ if !renormalize => scale,
            Score::Softmax if sum > 0.0 => scale / sum,
            Score::Softmax => scale,
            Score::Sigmoid { eps } => scale / (sum + eps),
        }
    }
}

/// How a feed-forward block's gate and up become the input of its down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `g · sigmoid(g) · u`.
    #[default]
    Swiglu,
    /// `gelu(g) · u`, the gelu by its approximation with a tanh (arXiv 2002.05202; 1606.08415, section 2).
    Geglu,
    /// `g' · sigmoid(alpha · g') · (u' + 1)` with `g' = min(g, limit)` and `u'` within `±limit` (gpt-oss).
    Clamped {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Limit on gate and up.
        limit: f32,
    },
}

/// What the experts of a layer have besides their matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Feed<'a> {
    /// Between gate, up and down.
    pub activation: Activation,
    /// Added to the products.
    pub biases: Option<Biases<'a>>,
    /// `[experts]`: they multiply gates.
    pub scales: Option<&'a [f32]>,
}

/// Biases of all experts of a layer.
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

/// The requirements of a model that a backend may not meet: the largest of all layers.
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
    /// Values of a key of gated delta nets.
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
    /// The layer. With the expert's index it names the expert's weights: a backend may keep them under that name.
    pub layer: usize,
    /// Experts in the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Tokens of the call, whichever experts they chose.
    pub tokens: usize,
    /// A name of the inputs, shared by calls with the same inputs: a layer's experts may come in several calls, with
    /// others between them. Converted inputs with this name may be reused. 0 names none.
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
    /// `[tokens, d]`: the result, or scratch where it is added.
    pub y: &'a mut Buf,
    /// What it is added to, `[tokens, d]`.
    pub x: Option<&'a mut Buf>,
    /// Where choices are noted for whoever reads a result back later.
    pub history: Option<History<'a, Buf>>,
}

/// What the last tokens of a call have chosen in one layer.
pub struct History<'a, Buf> {
    /// `[layers, tokens, top_k, 2]`: expert and gate, as the bits of values.
    pub buf: &'a mut Buf,
    /// Where the layer's part begins.
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
