//! The operations that a transformer runs on a processor, on buffers.
//!
//! [`Backend`] is the seam between `model` and the hardware. Buffers are opaque, so that they may live on a device;
//! host values pass through [`Backend::upload`] and [`Backend::read`] only. Calls are made from one thread at a
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
pub use kv::{KV_BLOCK, KV_TILE, KvPart, KvShape, KvSide};
pub use observe::{Observer, Summed};
pub use operands::{
    Absorbed, Activation, Added, AttendCall, Attention, Biases, Choice, Choosing, ConvCall, Delta, DeltaCall,
    ExpertJob, Feed, FeedCall, Flow, Groups, HeadsCall, History, KvCopy, Linear, LinearCall, MAX_GROUPS,
    MAX_TAPS, Norm, Placing, Projected, Recur, Recurrent, RopeTable, Routed, RoutedBufs, Router, Score,
    Sequence, SumCall, Times, Uses,
};
pub use variants::{GpuInputs, GpuVariants};

use crate::error::Result;
use crate::experts::{Expert, Refinement};
use crate::quant::Matrix;

/// Calls of this many tokens or more may be computed differently (on a CPU in bfloat16). That holds for all products of
/// the call, so that an expert's results do not depend on how many tokens chose it. The session cuts longer prompts
/// into pieces of at least this size.
pub const MANY: usize = 16;

/// A processor that can run a transformer.
///
/// Weights are identified by their address. A matrix, norm, bias or table that was passed must not change, nor be freed
/// for another, while the backend is in use, so that a device may keep its copy; rope tables have their own names. An
/// operation without a result reports its failure at the next operation that returns one.
pub trait Backend: Send + Sync + 'static {
    /// A run of f32 values.
    type Buf: Send + Sync;
    /// The keys and values of one layer.
    type Kv: Send + Sync;

    /// Sequences that one call may have tokens of: with several, a token each. Fewer than [`MANY`], so that a token is computed
    /// as it would be alone.
    const TOGETHER: usize = 1;

    /// Whether the backend computes all that a model uses; otherwise what is missing, for display. Called first, so
    /// that another backend can take the model.
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

    /// A zeroed buffer of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buf>;

    /// Copies `src` to `dst[at..]`.
    fn upload(&self, dst: &mut Self::Buf, at: usize, src: &[f32]);

    /// For every part, copies `src[at..]` to `dst` after all previous operations have finished: one wait for all parts.
    ///
    /// # Errors
    /// `Device` if a previous operation failed.
    fn read(&self, parts: &mut [(&Self::Buf, usize, &mut [f32])]) -> Result<()>;

    /// A hint about what the caller does next.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn flow(&self, flow: Flow<'_, '_>) -> Result<()> {
        let _ = flow;
        Ok(())
    }

    /// The `k` largest of the first `len` values of `x`, at most [`MAX_BEST`], as defined by [`best_of`], in `out`
    /// (`[k, 2]`: index and value as the bits of values, to be read by [`from_bits`]). Returns `false` and does nothing
    /// if the backend does not support it: the caller then reads the values and selects.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn best(&self, x: &Self::Buf, len: usize, k: usize, out: &mut Self::Buf) -> Result<bool> {
        let _ = (x, len, k, out);
        Ok(false)
    }

    /// Copies `src[at..at + len]` to the start of `dst`.
    fn copy(&self, src: &Self::Buf, at: usize, len: usize, dst: &mut Self::Buf);

    /// An empty cache with `places` for positions of keys and values, `heads` of them each, with `dims` values in a key and in a value.
    /// Position `p` takes place `p` modulo their number, which is a multiple of [`KV_TILE`] where there are more positions than places.
    fn alloc_kv(&self, places: usize, heads: usize, dims: [usize; 2]) -> Result<Self::Kv>;

    /// Copies a part of a layer's keys and values.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn copy_kv(&self, copy: KvCopy<'_, Self::Kv>, part: &KvPart) -> Result<()>;

    /// `out[i] = scale · table[tokens[i]]`, dequantized.
    fn embed(&self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Self::Buf);

    /// Several products of one input, or its norm alone.
    fn linear(&self, call: LinearCall<'_, '_, Self::Buf>);

    /// Writes keys and values to the caches, and mixes values for the queries. The projections are consumed.
    fn attend(&self, call: AttendCall<'_, '_, Self::Buf, Self::Kv>);

    /// Mixes tokens with what is kept of those before. The bits of a token do not depend on which others are in the call.
    fn recur(&self, call: Recur<'_, '_, Self::Buf>);

    /// `x += sigmoid(gate) · block(h)`, or what would be added in `y`.
    fn feed(&self, call: FeedCall<'_, Self::Buf>);

    /// How many of a call's last tokens have to be computed together, so that the last one's results are the same as
    /// among all. `None` if the backend should compute all.
    fn tail(&self, tokens: usize) -> Option<usize> {
        let _ = tokens;
        None
    }

    /// Weights of `logits` (`[tokens, experts]`) and the `top_k` best per token, best first (ties: lower index), in
    /// `out`: `tokens · top_k` choices. Reads back from the device.
    fn route(
        &self,
        logits: &Self::Buf,
        tokens: usize,
        router: Choosing<'_>,
        out: &mut Vec<Choice>,
    ) -> Result<()>;

    /// Feed-forward of each job's tokens; row `s` of `slots` (`[tokens · top_k, d]`) receives slot `s`.
    fn experts(
        &self,
        x: &Self::Buf,
        of: Routed,
        feed: &Feed<'_>,
        jobs: &[ExpertJob<'_>],
        slots: &mut Self::Buf,
    );

    /// Routing, experts and their weighted sum, added to `x` or in `y`, without a word to the host. `false`, and nothing done, where
    /// the backend cannot: the caller then routes and serves. Results are the same either way.
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

    /// Gives an expert of [`Backend::routed`] one more plane, from its next call on. Does nothing if the backend does
    /// not compute experts that way, or has no room for planes beside them.
    ///
    /// # Errors
    /// `Device`.
    fn refine(&self, refinement: &Refinement) -> Result<()> {
        let _ = refinement;
        Ok(())
    }

    /// `x[t] += Σ_r choices[t·k + r].gate · slots[t·k + r]`, ranks in order; or what would be added in `y`.
    fn sum(&self, call: SumCall<'_, Self::Buf>);
}
