//! The operations that a transformer runs on a processor, on buffers.
//!
//! [`Backend`] is the interface between `model` and the hardware. Buffers are opaque, because they may live
//! on a device; host values pass only through [`Backend::upload`] and [`Backend::read`]. At any time one
//! thread makes calls with a buffer; a backend uses its own threads for the work. A backend's results do not
//! depend on its number of threads, or on how tokens are split into calls.
//!
//! All buffers contain f32, row-major, one row per token.

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
pub use kv::{KV_BLOCK, KV_TILE, KvPart, KvShape, KvSide};
pub use observe::{Observer, Summed};
pub use operands::{
    Absorbed, Activation, Added, AttendCall, Attention, Biases, Choice, Choosing, ConvCall, Decay, Delta,
    DeltaCall, ExpertJob, Feed, FeedCall, Flow, Gate, Gated, Groups, HeadsCall, History, KvCopy, Linear,
    LinearCall, MAX_GROUPS, MAX_TAPS, Norm, Placing, Projected, Recur, Recurrent, RopeTable, Routed,
    RoutedBufs, Router, Rule, Score, Sequence, SumCall, Times, Uses,
};
pub use variants::{GpuInputs, GpuVariants};

use crate::error::Result;
use crate::experts::{Expert, Refinement};
use crate::quant::Matrix;

/// Calls of this many tokens or more may be computed differently (on a CPU in bfloat16). The rule applies to
/// all products of a call, so an expert's results do not depend on how many tokens chose it. The session
/// splits longer prompts into pieces of at least this size.
pub const MANY: usize = 16;

/// A processor that can run a transformer.
///
/// Weights are identified by their address, so that a device may keep a copy. A matrix, norm, bias or table that was
/// passed must not change, or be freed and its memory reused, while the backend exists; rope tables have their own
/// names. If an operation without a result fails, the next operation that returns a `Result` reports the failure.
pub trait Backend: Send + Sync + 'static {
    /// A buffer of f32 values.
    type Buf: Send + Sync;
    /// The keys and values of one layer.
    type Kv: Send + Sync;

    /// The most sequences in one call; with several, each has one token. Less than [`MANY`], so that a token
    /// is computed as it would be alone.
    const TOGETHER: usize = 1;

    /// Checks whether the backend supports everything that a model uses. Called before anything else, so that
    /// another backend can be chosen.
    ///
    /// # Errors
    /// The missing feature, for display.
    fn supports(uses: &Uses) -> Result<(), String>
    where
        Self: Sized,
    {
        let _ = uses;
        Ok(())
    }

    /// A zeroed buffer of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buf>;

    /// Copies `src` to `dst[at..]`.
    fn upload(&self, dst: &mut Self::Buf, at: usize, src: &[f32]);

    /// For each part, copies `src[at..]` to `dst` after all earlier operations have finished. Waits once for all parts.
    ///
    /// # Errors
    /// `Device` if an earlier operation failed.
    fn read(&self, parts: &mut [(&Self::Buf, usize, &mut [f32])]) -> Result<()>;

    /// A hint about what the caller does next.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn flow(&self, flow: Flow<'_, '_>) -> Result<()> {
        let _ = flow;
        Ok(())
    }

    /// The `k` largest of the first `len` values of `x`, at most [`MAX_BEST`], as defined by [`best_of`]. `out` is
    /// `[k, 2]`: the index and the value, both as the bits of an f32 ([`from_bits`] reads them). Returns `false` and
    /// does nothing if the backend does not support it: the caller then reads the values and selects.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn best(&self, x: &Self::Buf, len: usize, k: usize, out: &mut Self::Buf) -> Result<bool> {
        let _ = (x, len, k, out);
        Ok(false)
    }

    /// Copies `src[at..at + len]` to the start of `dst`.
    fn copy(&self, src: &Self::Buf, at: usize, len: usize, dst: &mut Self::Buf);

    /// An empty cache for keys and values, with `places` positions and `heads` heads; `dims` are the values of a key and of
    /// a value. Position `p` has place `p % places`. With more positions than places, `places` is a multiple of [`KV_TILE`].
    fn alloc_kv(&self, places: usize, heads: usize, dims: [usize; 2]) -> Result<Self::Kv>;

    /// Copies a part of a layer's keys and values.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn copy_kv(&self, copy: KvCopy<'_, Self::Kv>, part: &KvPart) -> Result<()>;

    /// `out[i] = scale · table[tokens[i]]`, dequantized.
    fn embed(&self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Self::Buf);

    /// Several products with the same input, or only the input's norm.
    fn linear(&self, call: LinearCall<'_, '_, Self::Buf>);

    /// Writes keys and values to the caches, and mixes values for the queries. Overwrites the projections.
    fn attend(&self, call: AttendCall<'_, '_, Self::Buf, Self::Kv>);

    /// Mixes tokens with the state of earlier ones. A token's bits do not depend on the other tokens of the call.
    fn recur(&self, call: Recur<'_, '_, Self::Buf>);

    /// `x += sigmoid(gate) · block(h)`; without `x`, the summand goes to `y`.
    fn feed(&self, call: FeedCall<'_, Self::Buf>);

    /// How many of a call's last tokens must be computed together so that the last one's results are the same
    /// as with all tokens. `None` if the backend should compute all.
    fn tail(&self, tokens: usize) -> Option<usize> {
        let _ = tokens;
        None
    }

    /// Gate weights for `logits` (`[tokens, experts]`). `out` receives the `top_k` best choices of each
    /// token, best first (ties: lower index): `tokens · top_k` choices. Reads back from the device.
    fn route(
        &self,
        logits: &Self::Buf,
        tokens: usize,
        router: Choosing<'_>,
        out: &mut Vec<Choice>,
    ) -> Result<()>;

    /// The feed-forward block of each job's expert. Slot `s` goes to row `s` of `slots` (`[tokens · top_k, d]`).
    fn experts(
        &self,
        x: &Self::Buf,
        of: Routed,
        feed: &Feed<'_>,
        jobs: &[ExpertJob<'_>],
        slots: &mut Self::Buf,
    );

    /// Routing, experts and their weighted sum, added to `x` or written to `y`, without a read-back. Returns `false`
    /// and does nothing if unsupported: the caller then routes and serves. Results are the same either way.
    ///
    /// # Errors
    /// `Device` if the experts do not fit the device.
    fn routed(
        &self,
        bufs: RoutedBufs<'_, Self::Buf>,
        tokens: usize,
        router: Choosing<'_>,
        (layer, feed): (usize, &Feed<'_>),
        experts: &[Expert],
    ) -> Result<bool> {
        let _ = (bufs, tokens, router, layer, feed, experts);
        Ok(false)
    }

    /// Gives an expert of [`Backend::routed`] one more plane, from its next call on. Does nothing if the
    /// backend does not compute experts that way, or has no room for extra planes.
    ///
    /// # Errors
    /// `Device`.
    fn refine(&self, refinement: &Refinement) -> Result<()> {
        let _ = refinement;
        Ok(())
    }

    /// `x[t] += Σ_r choices[t·k + r].gate · slots[t·k + r]`, in order of rank; without `x`, the sum goes to `y`.
    fn sum(&self, call: SumCall<'_, Self::Buf>);
}
