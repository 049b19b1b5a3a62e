//! The buffers of a call, whichever sequences its rows belong to. Allocated once; `bytes` counts what `new`
//! allocates.

mod layers;

use super::{LOGIT_ROWS, Model, Noted};
use crate::error::Result;
use crate::kernels::{Backend, MAX_BEST, RopeTable};
use crate::model::Spec;
use crate::model::spec::AttentionSpec;
pub(super) use layers::{DeltaScratch, InputScratch, MoeScratch};

/// Buffers for calls of up to `chunk` tokens, at positions below `capacity`.
pub struct Scratch<B: Backend> {
    pub(super) chunk: usize,
    pub(super) capacity: usize,
    /// The tables of each of the model's rotary embeddings.
    pub(super) ropes: Vec<RopeTable>,
    /// The tokens of a call.
    pub(super) tokens: Vec<u32>,
    /// Residual stream, `[chunk, d]`.
    pub(super) x: B::Buf,
    /// Normed input of a sub-block, `[chunk, d]`.
    pub(super) h: B::Buf,
    /// Output of a sub-block, `[chunk, d]`.
    pub(super) y: B::Buf,
    /// Queries, `[chunk, heads · head_dim]`.
    pub(super) q: B::Buf,
    /// Keys, `[chunk, kv_heads · head_dim]`.
    pub(super) k: B::Buf,
    /// Values, `[chunk, kv_heads · head_dim]`.
    pub(super) v: B::Buf,
    /// Output of attention, `[chunk, heads · head_dim]`.
    pub(super) attn: B::Buf,
    /// Projected input of convolutions, `[chunk, 3 · d]`; empty without convolution layers.
    pub(super) conv: B::Buf,
    /// Gate of attention's output, `[chunk, heads · head_dim]`; empty without such gates.
    pub(super) gate: B::Buf,
    /// Present if the model has delta nets.
    pub(super) delta: Option<DeltaScratch<B>>,
    /// `[LOGIT_ROWS, vocab]`.
    pub(super) logits: B::Buf,
    /// One row of logits on the host, `[vocab]`.
    pub(super) host: Vec<f32>,
    /// A scaled row of an embedding that stays in the file, `[d]`, or `[layers · per_layer]` if that is
    /// wider.
    pub(super) row: Vec<f32>,
    /// The likeliest tokens and their logits: `[MAX_BEST, 2]` as the backend writes them, the same on the
    /// host, and decoded.
    pub(super) best: B::Buf,
    pub(super) best_bits: Vec<f32>,
    pub(super) likeliest: Vec<(u32, f32)>,
    pub(super) moe: Option<MoeScratch<B>>,
    pub(super) inputs: Option<InputScratch<B>>,
    /// The routers' recorded choices, if a refiner learns from them.
    pub(super) noted: Option<Noted<B>>,
}

impl<B: Backend> Scratch<B> {
    /// Allocates buffers for up to `chunk` tokens at positions below `capacity`.
    pub fn new(backend: &B, model: &Model, capacity: usize, chunk: usize) -> Result<Scratch<B>> {
        let (c, w) = (&model.spec, &model.weights);
        let q_width = c.most(AttentionSpec::q_width);
        let (kv_width, v_width) = (c.most(AttentionSpec::kv_width), c.most(AttentionSpec::v_width));
        let moe = match c.router() {
            None => None,
            Some(router) => Some(MoeScratch::new(backend, model, &router, chunk)?),
        };
        Ok(Scratch {
            chunk,
            capacity,
            ropes: c.rope_tables(capacity, w.rope_factors.as_deref()),
            tokens: Vec::with_capacity(chunk),
            x: backend.alloc(chunk * c.d)?,
            h: backend.alloc(chunk * c.d)?,
            y: backend.alloc(chunk * c.d)?,
            q: backend.alloc(chunk * q_width)?,
            k: backend.alloc(chunk * kv_width)?,
            v: backend.alloc(chunk * v_width)?,
            attn: backend.alloc(chunk * q_width)?,
            conv: backend.alloc(chunk * c.conv_width())?,
            gate: backend.alloc(chunk * c.gate_width())?,
            delta: DeltaScratch::new(backend, c, chunk)?,
            logits: backend.alloc(LOGIT_ROWS.min(chunk) * w.vocab())?,
            host: vec![0.0; w.vocab()],
            row: vec![0.0; c.d.max(c.layers.len() * c.per_layer)],
            best: backend.alloc(2 * MAX_BEST)?,
            best_bits: vec![0.0; 2 * MAX_BEST],
            likeliest: Vec::with_capacity(MAX_BEST),
            moe,
            inputs: InputScratch::new(backend, c, chunk)?,
            noted: match (c.router(), model.experts.refine()) {
                (Some(router), Some(_)) => Some(Noted::new(backend, c.layers.len(), router, chunk)?),
                _ => None,
            },
        })
    }

    /// Bytes of [`Scratch::new`], without the backend's own scratch.
    pub fn bytes(spec: &Spec, vocab: usize, capacity: usize, chunk: usize) -> usize {
        let c = spec;
        let stream = chunk
            * (3 * c.d
                + 2 * c.most(AttentionSpec::q_width)
                + c.most(AttentionSpec::kv_width)
                + c.most(AttentionSpec::v_width)
                + c.conv_width()
                + c.gate_width())
            + DeltaScratch::<B>::words(c, chunk);
        let moe = c
            .router()
            .map_or(0, |r| MoeScratch::<B>::words(&r, c.d, chunk, c.layers.iter().any(|l| l.sandwich)));
        let logits =
            (LOGIT_ROWS.min(chunk) + 2) * vocab + 6 * MAX_BEST + c.d.max(c.layers.len() * c.per_layer);
        let inputs = InputScratch::<B>::words(c, chunk);
        4 * (stream + moe + inputs + logits + chunk + c.rope_values(capacity))
    }

    /// Bytes of [`Scratch::new`] beyond [`Scratch::bytes`], if a refiner learns from the routers' choices.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// The most tokens per call.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// The number of positions that the rotary tables cover.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
