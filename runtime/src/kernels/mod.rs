//! What a transformer needs of a processor, as operations on buffers.
//!
//! [`Backend`] is the seam between `model` and the hardware. Buffers are opaque, so that they may live on a device;
//! host values pass through [`Backend::upload`] and [`Backend::download`] only. Calls are made from one thread at a
//! time per buffer; a backend spreads the work over its own threads. Results of one backend do not depend on how many
//! threads it has or on how tokens are split into calls.
//!
//! All buffers hold f32, row-major, one row per token.

mod best;
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
mod kv;
mod observe;
mod operands;
#[cfg(test)]
mod testing;
mod variants;

pub use best::{MAX_BEST, best_of, from_bits};
pub use kv::{KV_BLOCK, KvPart, KvShape, KvSide};
pub use observe::Observer;
pub use operands::{
    Activation, Attention, Biases, Choice, ExpertJob, Feed, History, Linear, Norm, Placing, Projected,
    RopeTable, Routed, RoutedBufs, Router, Uses,
};
pub use variants::{GpuInputs, GpuVariants};

use crate::error::Result;
use crate::experts::{Expert, Refinement};
use crate::quant::Matrix;

/// A processor that can run a transformer.
///
/// Weights are named by where they lie: what is passed as a matrix, norm, bias or table must not change or make room for
/// another while the backend is in use, so that a device may keep what it has copied; of two rope tables the shorter is the
/// other's beginning. Operations without a result that fail say so at the next operation that returns one.
pub trait Backend: Send + Sync + 'static {
    /// A run of f32 values.
    type Buf: Send;
    /// The keys and values of one layer.
    type Kv: Send;

    /// Whether it computes all that a model uses; what it does not, for people. Asked before anything else, so that another
    /// backend can take the model.
    ///
    /// # Errors
    /// What is missing.
    fn supports(uses: &Uses) -> Result<(), String>
    where
        Self: Sized,
    {
        let _ = uses;
        Ok(())
    }

    /// What it is, for people: instruction set and threads, or the adapter's name.
    fn name(&self) -> String;

    /// A zeroed buffer of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buf>;

    /// Copies `src` to `dst[at..]`.
    fn upload(&self, dst: &mut Self::Buf, at: usize, src: &[f32]);

    /// Copies `src[at..]` to `dst`, after everything before it has finished.
    fn download(&self, src: &Self::Buf, at: usize, dst: &mut [f32]) -> Result<()>;

    /// Several downloads with one wait.
    ///
    /// # Errors
    /// As [`Backend::download`].
    fn download_together(&self, parts: &mut [(&Self::Buf, usize, &mut [f32])]) -> Result<()> {
        parts.iter_mut().try_for_each(|(src, at, dst)| self.download(src, *at, dst))
    }

    /// A part of a longer computation is complete, and nobody reads a result of it: the processor may begin, and the caller is
    /// kept from getting far ahead.
    ///
    /// # Errors
    /// As [`Backend::download`].
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }

    /// More will follow of what a caller waits for elsewhere, as for weights from storage: the processor may begin with what it
    /// has, and nobody waits for it.
    ///
    /// # Errors
    /// `Device` where something has gone wrong before.
    fn start(&self) -> Result<()> {
        Ok(())
    }

    /// The `k` greatest of the first `len` values of `x`, at most [`MAX_BEST`], as [`best_of`] says, in `out` (`[k, 2]`:
    /// index and value as the bits of values, to be read by [`from_bits`]). `false`, and nothing done, where the backend does
    /// not choose: the caller then reads the values and does.
    ///
    /// # Errors
    /// As [`Backend::download`].
    fn best(&self, x: &Self::Buf, len: usize, k: usize, out: &mut Self::Buf) -> Result<bool> {
        let _ = (x, len, k, out);
        Ok(false)
    }

    /// Copies `src[at..at + len]` to the start of `dst`.
    fn copy(&self, src: &Self::Buf, at: usize, len: usize, dst: &mut Self::Buf);

    /// An empty cache for `capacity` positions of keys and values, `heads` of `head_dim` values each.
    fn alloc_kv(&self, capacity: usize, heads: usize, head_dim: usize) -> Result<Self::Kv>;

    /// Copies a part of what a cache holds to `out`, after everything before it has finished. Positions that were not written are
    /// whatever they are.
    ///
    /// # Errors
    /// As [`Backend::download`].
    fn read_kv(&self, kv: &Self::Kv, part: &KvPart, out: &mut [u8]) -> Result<()>;

    /// Copies what [`Backend::read_kv`] gave to a cache, of this backend or another.
    fn write_kv(&self, kv: &mut Self::Kv, part: &KvPart, from: &[u8]);

    /// `out[i] = table[tokens[i]]`, dequantized.
    fn embed(&self, table: &Matrix, tokens: &[u32], out: &mut Self::Buf);

    /// `out = x / sqrt(mean(x²) + eps) · weight` over each of `rows` rows of `weight.len()` values.
    fn rms_norm(&self, x: &Self::Buf, weight: &[f32], eps: f32, rows: usize, out: &mut Self::Buf);

    /// Several products of the same `x` (`[tokens, cols]`).
    fn linear(&self, x: &Self::Buf, tokens: usize, outs: &mut [Linear<'_, Self::Buf>]);

    /// `h = rms_norm(x)`, and several products of `h`.
    fn norm_linear(
        &self,
        x: &Self::Buf,
        norm: Norm<'_>,
        tokens: usize,
        h: &mut Self::Buf,
        outs: &mut [Linear<'_, Self::Buf>],
    ) {
        self.rms_norm(x, norm.weight, norm.eps, tokens, h);
        self.linear(h, tokens, outs);
    }

    /// `x += matrix · y + bias`, by way of `linear.out` where the backend needs it.
    fn linear_add(&self, y: &Self::Buf, tokens: usize, linear: Linear<'_, Self::Buf>, x: &mut Self::Buf) {
        let Linear { matrix, bias, out } = linear;
        self.linear(y, tokens, &mut [Linear { matrix, bias, out: &mut *out }]);
        self.add(x, out, tokens * matrix.rows());
    }

    /// Makes queries of `tokens` rows that stand at positions `pos..` ready for attention, in `rotated`, and writes their
    /// keys and values to the cache. The projections are used up.
    fn place(
        &self,
        x: Projected<'_, Self::Buf>,
        how: &Placing<'_>,
        pos: usize,
        tokens: usize,
        kv: &mut Self::Kv,
        rotated: &mut Self::Buf,
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

    /// [`Backend::attend`] of one token at once, where a backend can.
    #[allow(clippy::too_many_arguments)]
    fn attend_one(
        &self,
        x: &Projected<'_, Self::Buf>,
        how: &Placing<'_>,
        pos: usize,
        kv: &mut Self::Kv,
        shape: &Attention,
        out: &mut Self::Buf,
    ) -> bool {
        let _ = (x, how, pos, kv, shape, out);
        false
    }

    /// Weights that will be used next, in order, while there is nothing else to do: they may be brought nearer.
    fn warm(&self, matrices: &mut dyn Iterator<Item = &Matrix>) {
        let _ = matrices;
    }

    /// Of a call's tokens, how many of the last have to be computed together for the last one's results to be what they are
    /// among all. `None` where the backend had better take all.
    fn tail(&self, tokens: usize) -> Option<usize> {
        let _ = tokens;
        None
    }

    /// [`Backend::place`], and [`Backend::attention`] of the queries, which goes to `out`.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        x: Projected<'_, Self::Buf>,
        how: &Placing<'_>,
        pos: usize,
        tokens: usize,
        kv: &mut Self::Kv,
        shape: &Attention,
        out: &mut Self::Buf,
    ) {
        if tokens == 1 && self.attend_one(&x, how, pos, kv, shape, out) {
            return;
        }
        let Projected { q, k, v } = x;
        self.place(Projected { q, k, v }, how, pos, tokens, kv, out);
        self.attention(out, kv, pos, tokens, shape, q);
        std::mem::swap(q, out);
    }

    /// Softmax of `logits` (`[tokens, experts]`) and the `top_k` best per token, best first (ties: lower index), in
    /// `out`: `tokens · top_k` choices. Reads back from the device.
    fn route(&self, logits: &Self::Buf, tokens: usize, router: &Router, out: &mut Vec<Choice>) -> Result<()>;

    /// Feed-forward ([`Activation::Swiglu`]) of `x` (`[tokens, d]`) through one expert or dense block.
    fn ffn(&self, x: &Self::Buf, tokens: usize, expert: &Expert, out: &mut Self::Buf);

    /// `x += sigmoid(gate) · ffn(h)`, or without a gate `x += ffn(h)`, by way of `y` where the backend needs it; `gate` is
    /// `[tokens, 1]`.
    fn ffn_add(
        &self,
        h: &Self::Buf,
        tokens: usize,
        expert: &Expert,
        gate: Option<&Self::Buf>,
        y: &mut Self::Buf,
        x: &mut Self::Buf,
    ) {
        let d = expert.down.rows();
        self.ffn(h, tokens, expert, y);
        if let Some(gate) = gate {
            self.gate_rows(y, gate, tokens, d);
        }
        self.add(x, y, tokens * d);
    }

    /// Feed-forward of each job's tokens; row `s` of `slots` (`[tokens · top_k, d]`) receives slot `s`.
    fn experts(
        &self,
        x: &Self::Buf,
        of: Routed,
        feed: &Feed<'_>,
        jobs: &[ExpertJob<'_>],
        slots: &mut Self::Buf,
    );

    /// Routing, experts and their weighted sum, added to `x`, without a word to the host. `false`, and nothing done, where
    /// the backend cannot: the caller then routes and serves. Results are the same either way.
    ///
    /// # Errors
    /// `Device` where the experts do not fit the device.
    fn routed(
        &self,
        bufs: RoutedBufs<'_, Self::Buf>,
        tokens: usize,
        router: &Router,
        (layer, feed): (usize, &Feed<'_>),
        experts: &[Expert],
    ) -> Result<bool> {
        let _ = (bufs, tokens, router, layer, feed, experts);
        Ok(false)
    }

    /// Gives an expert that [`Backend::routed`] computes a plane more, from its next call on. Nothing where the backend does
    /// not compute experts that way, or has no room for planes beside them.
    ///
    /// # Errors
    /// `Device`.
    fn refine(&self, refinement: &Refinement) -> Result<()> {
        let _ = refinement;
        Ok(())
    }

    /// `out[t] = Σ_r choices[t·k + r].gate · slots[t·k + r]`, ranks in order, rows of `d` values.
    fn combine(&self, slots: &Self::Buf, choices: &[Choice], top_k: usize, d: usize, out: &mut Self::Buf);

    /// `x[t] *= sigmoid(gate[t])` for `rows` rows of `d` values; `gate` is `[rows, 1]`.
    fn gate_rows(&self, x: &mut Self::Buf, gate: &Self::Buf, rows: usize, d: usize);

    /// `x[..len] += y[..len]`.
    fn add(&self, x: &mut Self::Buf, y: &Self::Buf, len: usize);
}
