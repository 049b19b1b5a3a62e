//! Memory that the CPU backend keeps between operations, and its upper bound, which the memory plan uses.
//!
//! Scratch grows to what an operation needs and never shrinks. It grows to the exact size ([`super::aligned::grow`]), so
//! that [`CpuBackend::scratch_bytes`] can compute the bound from a model's shape before anything is loaded.

use super::MANY;
use super::activations::Activations;
use super::aligned::Aligned;
use super::attention::{self, Attending};
use super::halves::Halves;
use super::pool::Pool;
use super::quantized::Ordered;
use super::rows::each_row;
use super::{CpuBackend, Isa, SLOTS_AT_ONCE};
use crate::quant::Rotation;

/// The shape that bounds the scratch of a [`CpuBackend`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchShape {
    /// The most tokens of one call.
    pub chunk: usize,
    /// Width of the residual stream.
    pub d: usize,
    /// Columns of the widest matrix whose input is the residual stream or attention's output. Down
    /// projections do not count.
    pub widest: usize,
    /// Hidden width of a routed expert; 0 without any.
    pub ff_routed: usize,
    /// Whether the inputs of routed experts' gates, and of their down projections, are rotated.
    pub rotated: [bool; 2],
    /// Hidden width of the widest dense block or shared expert; 0 without any.
    pub ff_dense: usize,
    /// Values per token in the inputs of per-head products.
    pub of_heads: usize,
    /// Routed experts per token.
    pub top_k: usize,
    /// Routed experts per layer.
    pub experts: usize,
    /// Query heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Positions of the longest cache.
    pub context: usize,
    /// Threads, as in [`super::CpuOptions::threads`]: 0 for one per core.
    pub threads: usize,
}

/// Products' inputs after conversion.
#[derive(Default)]
pub(super) struct Inputs {
    pub(super) by_32: Activations,
    pub(super) by_64: Activations,
    /// Inputs of a layer's routed experts.
    pub(super) routed_32: Ordered,
    pub(super) routed_64: Ordered,
    pub(super) halves: Halves,
}

/// Inputs of routed experts, rotated.
#[derive(Default)]
pub(super) struct Turned {
    /// `[tokens, d]`.
    x: Aligned<f32>,
    /// The inputs' number in [`crate::kernels::Routed::inputs`].
    made: u64,
}

impl Turned {
    /// Rotates `rows` of `x` with `rotation`, unless the last inputs had the same number (see
    /// [`crate::kernels::Routed::inputs`]).
    pub(super) fn put(
        &mut self,
        pool: &Pool,
        isa: Isa,
        (x, rows): (&[f32], usize),
        rotation: Rotation,
        name: u64,
    ) {
        let cols = rotation.cols();
        if name != 0 && self.made == name {
            return;
        }
        self.x.reserve(rows * cols);
        each_row(pool, &mut self.x[..rows * cols], cols, &|row, out| {
            out.copy_from_slice(&x[row * cols..][..cols]);
            turn(isa, out, rotation);
        });
        self.made = name;
    }

    /// The rotated rows.
    pub(super) fn read(&self) -> &[f32] {
        &self.x
    }
}

/// Rotates a row in place.
pub(super) fn turn(isa: Isa, row: &mut [f32], rotation: Rotation) {
    isa.run(
        #[inline(always)]
        || rotation.apply(row),
    );
}

/// Buffers that operations keep for the next one.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) inputs: Inputs,
    pub(super) turned: Turned,
    /// Activated inputs of the down projections, `[slots, ff]`.
    pub(super) gate: Aligned<f32>,
    /// Inputs of per-head products, `[heads, tokens, cols]`.
    pub(super) heads: Aligned<f32>,
    pub(super) tokens: Vec<u32>,
    pub(super) attending: Attending,
    /// For routing: the weights of a token's experts, their scores for the choice, and their order.
    pub(super) weights: Vec<f32>,
    pub(super) standings: Vec<f32>,
    pub(super) order: Vec<u32>,
}

impl Scratch {
    /// Bytes allocated.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let floats = self.weights.capacity() + self.standings.capacity();
        let ids = self.tokens.capacity() + self.order.capacity();
        let Inputs { by_32, by_64, routed_32, routed_64, halves } = &self.inputs;
        by_32.held()
            + by_64.held()
            + routed_32.held()
            + routed_64.held()
            + halves.held()
            + self.gate.held()
            + self.heads.held()
            + self.turned.x.held()
            + self.attending.held()
            + 4 * (floats + ids)
    }
}

impl CpuBackend {
    /// An upper bound for the bytes of a backend's own scratch, for any computation with a model of this shape in
    /// chunks of this size: quantized activations, hidden values of feed-forward blocks, routing, and attention's
    /// working memory per thread. It excludes stacks, and buffers and caches that the caller allocates.
    pub fn scratch_bytes(shape: &ScratchShape) -> usize {
        let s = shape;
        // A token chooses an expert at most once, so one job alone has no more slots than tokens.
        let slots = (s.chunk * s.top_k).min(SLOTS_AT_ONCE.max(s.chunk));
        let dense = s.chunk.min(SLOTS_AT_ONCE);
        // Per-head products have a row for each head of each token.
        let heads = if s.of_heads > 0 { s.heads } else { 0 };
        let of_head = s.of_heads.div_ceil(s.heads.max(1));
        let inputs = [
            (s.chunk, s.widest.max(s.d)),
            (slots, s.ff_routed),
            (dense, s.ff_dense),
            (s.chunk * heads, of_head),
        ];
        let ordered = if s.ff_routed > 0 { slots } else { 0 };
        // Bytes of quantized activations for calls of up to `tokens` tokens.
        let quantized = |tokens: usize| -> usize {
            let group = |group| {
                let bytes = |&(n, cols): &(usize, usize)| Activations::bytes(n.min(tokens), cols, group);
                let most = inputs.iter().map(bytes).max().unwrap_or(0);
                if ordered == 0 {
                    return most;
                }
                most + Ordered::bytes(s.chunk.min(tokens), ordered.min(tokens), s.d, group)
            };
            group(32) + group(64)
        };
        // In bfloat16, if the machine uses it for calls of many tokens; then only small calls are quantized.
        let halves = inputs.iter().map(|&(tokens, cols)| Halves::bytes(tokens, cols)).max().unwrap_or(0);
        let halves =
            halves.max(Halves::bytes(ordered, s.d)) + quantized((MANY - 1) * s.top_k.max(heads).max(1));
        let activations = quantized(usize::MAX).max(if Isa::best().halves() { halves } else { 0 });
        let gate = Aligned::<f32>::bytes((slots * s.ff_routed).max(dense * s.ff_dense));
        let turned = if s.rotated[0] { Aligned::<f32>::bytes(s.chunk * s.d) } else { 0 };
        let of_heads = Aligned::<f32>::bytes(s.chunk * s.of_heads);
        let ids = 4 * (2 * slots.max(s.chunk * heads.max(1)) + s.chunk);
        let routing = 12 * s.experts;
        let threads = if s.threads == 0 { super::available() } else { s.threads };
        let attention = attention::scratch_bytes(s.heads, s.head_dim, s.context, threads);
        activations + gate + turned + of_heads + ids + routing + attention
    }

    /// Bytes of the keys and values of one layer.
    pub fn kv_bytes(capacity: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
        super::CpuKv::bytes(capacity, heads, dims, single)
    }

    /// Bytes that the backend holds now, including those of the calling thread.
    #[cfg(test)]
    pub(super) fn scratch_held(&self) -> usize {
        use std::sync::PoisonError;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.held() + 4 * slots.capacity() + super::kv::held_by_thread()
    }
}
