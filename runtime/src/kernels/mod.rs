//! What a transformer needs of a processor, as operations on buffers.
//!
//! [`Backend`] is the seam between `model` and the hardware. Buffers are opaque, so that they may live on a device;
//! host values pass through [`Backend::upload`] and [`Backend::download`] only. Calls are made from one thread at a
//! time per buffer; a backend spreads the work over its own threads. Results of one backend do not depend on how many
//! threads it has or on how tokens are split into calls.
//!
//! All buffers hold f32, row-major, one row per token.

pub mod cpu;

use crate::error::Result;
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

/// The shape of one attention operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// With `Some(w)`, position `p` sees `p − w + 1 ..= p`; otherwise `0 ..= p`.
    pub window: Option<usize>,
}

/// Cosines and sines for rotary embedding, in half-split ("NeoX") order, any frequency scaling already applied.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Rotated dimensions of a head, even; the rest of the head passes through.
    pub dims: usize,
    /// `[positions, dims / 2]`.
    pub cos: Vec<f32>,
    /// `[positions, dims / 2]`.
    pub sin: Vec<f32>,
}

/// How router logits become gate weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Experts in the layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Softmax over all experts happens before the choice. Divide the chosen weights by their sum?
    pub renormalize: bool,
    /// Multiplies the final weights.
    pub scale: f32,
}

/// One expert chosen for one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Expert within the layer.
    pub expert: u32,
    /// Its weight in the sum.
    pub gate: f32,
}

/// The work of one expert: the (token, rank) slots that chose it. Slot `s` belongs to token `s / top_k`.
#[derive(Clone, Copy)]
pub struct ExpertJob<'a> {
    /// Its weights.
    pub expert: &'a Expert,
    /// Slots in ascending order.
    pub slots: &'a [u32],
}

/// A processor that can run a transformer.
pub trait Backend: Send + Sync + 'static {
    /// A run of f32 values.
    type Buf: Send;
    /// The keys and values of one layer.
    type Kv: Send;

    /// What it is, for people: instruction set and threads, or the adapter's name.
    fn name(&self) -> String;

    /// A zeroed buffer of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buf>;

    /// Copies `src` to `dst[at..]`.
    fn upload(&self, dst: &mut Self::Buf, at: usize, src: &[f32]);

    /// Copies `src[at..]` to `dst`, after everything before it has finished.
    fn download(&self, src: &Self::Buf, at: usize, dst: &mut [f32]) -> Result<()>;

    /// Copies `src[at..at + len]` to the start of `dst`.
    fn copy(&self, src: &Self::Buf, at: usize, len: usize, dst: &mut Self::Buf);

    /// An empty cache for `capacity` positions of keys and values, `heads` of `head_dim` values each.
    fn alloc_kv(&self, capacity: usize, heads: usize, head_dim: usize) -> Result<Self::Kv>;

    /// Writes keys and values of `tokens` positions from `pos` on.
    fn write_kv(&self, kv: &mut Self::Kv, pos: usize, tokens: usize, k: &Self::Buf, v: &Self::Buf);

    /// `out[i] = table[tokens[i]]`, dequantized.
    fn embed(&self, table: &Matrix, tokens: &[u32], out: &mut Self::Buf);

    /// `out = x / sqrt(mean(x²) + eps) · weight` over each of `rows` rows of `weight.len()` values.
    fn rms_norm(&self, x: &Self::Buf, weight: &[f32], eps: f32, rows: usize, out: &mut Self::Buf);

    /// [`Backend::rms_norm`] where input and output are one buffer.
    fn rms_norm_in_place(&self, x: &mut Self::Buf, weight: &[f32], eps: f32, rows: usize);

    /// Several products of the same `x` (`[tokens, cols]`).
    fn linear(&self, x: &Self::Buf, tokens: usize, outs: &mut [Linear<'_, Self::Buf>]);

    /// Limits the first `len` values to `±limit`.
    fn clamp(&self, x: &mut Self::Buf, len: usize, limit: f32);

    /// Rotates `heads` heads of `head_dim` values of `tokens` rows, which stand at positions `pos..`.
    fn rope(
        &self,
        x: &mut Self::Buf,
        pos: usize,
        tokens: usize,
        heads: usize,
        head_dim: usize,
        table: &RopeTable,
    );

    /// Causal attention of `tokens` queries at positions `pos..` over everything written to `kv` up to each of them.
    fn attention(
        &self,
        q: &Self::Buf,
        kv: &Self::Kv,
        pos: usize,
        tokens: usize,
        shape: &Attention,
        out: &mut Self::Buf,
    );

    /// Softmax of `logits` (`[tokens, experts]`) and the `top_k` best per token, best first (ties: lower index), in
    /// `out`: `tokens · top_k` choices. Reads back from the device.
    fn route(&self, logits: &Self::Buf, tokens: usize, router: &Router, out: &mut Vec<Choice>) -> Result<()>;

    /// Feed-forward (SwiGLU) of `x` (`[tokens, d]`) through one expert or dense block.
    fn ffn(&self, x: &Self::Buf, tokens: usize, expert: &Expert, out: &mut Self::Buf);

    /// Feed-forward of each job's tokens; row `s` of `slots` (`[tokens · top_k, d]`) receives slot `s`.
    fn experts(&self, x: &Self::Buf, top_k: usize, jobs: &[ExpertJob<'_>], slots: &mut Self::Buf);

    /// `out[t] = Σ_r choices[t·k + r].gate · slots[t·k + r]`, ranks in order, rows of `d` values.
    fn combine(&self, slots: &Self::Buf, choices: &[Choice], top_k: usize, d: usize, out: &mut Self::Buf);

    /// `x[t] *= sigmoid(gate[t])` for `rows` rows of `d` values; `gate` is `[rows, 1]`.
    fn gate_rows(&self, x: &mut Self::Buf, gate: &Self::Buf, rows: usize, d: usize);

    /// `x[..len] += y[..len]`.
    fn add(&self, x: &mut Self::Buf, y: &Self::Buf, len: usize);
}
