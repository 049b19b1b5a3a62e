//! Scratch of a call: buffers for its rows, whichever sequences they are of, taken once and counted where they are taken.

mod layers;

use super::{LOGIT_ROWS, Model, Noted};
use crate::error::Result;
use crate::kernels::{Backend, MAX_BEST, RopeTable};
use crate::model::Spec;
use crate::model::spec::AttentionSpec;
pub(super) use layers::{DeltaScratch, InputScratch, MoeScratch};

/// Buffers for calls of up to `chunk` tokens at positions of up to `capacity`.
pub struct Scratch<B: Backend> {
    pub(super) chunk: usize,
    pub(super) capacity: usize,
    /// Of each of the model's rotary embeddings.
    pub(super) ropes: Vec<RopeTable>,
    /// The tokens of a call.
    pub(super) tokens: Vec<u32>,
    /// Residual stream, `[chunk, d]`.
    pub(super) x: B::Buf,
    /// Normed input of a sub-block, `[chunk, d]`.
    pub(super) h: B::Buf,
    /// Output of a sub-block, `[chunk, d]`.
    pub(super) y: B::Buf,
    /// `[chunk, heads · head_dim]`.
    pub(super) q: B::Buf,
    /// `[chunk, kv_heads · head_dim]`.
    pub(super) k: B::Buf,
    /// `[chunk, kv_heads · head_dim]`.
    pub(super) v: B::Buf,
    /// `[chunk, heads · head_dim]`.
    pub(super) attn: B::Buf,
    /// `[chunk, 3 · d]`, where layers have convolutions.
    pub(super) conv: B::Buf,
    /// `[chunk, heads · head_dim]`, where what comes out of attention is gated.
    pub(super) gate: B::Buf,
    /// Where layers have delta nets.
    pub(super) delta: Option<DeltaScratch<B>>,
    /// `[LOGIT_ROWS, vocab]`.
    pub(super) logits: B::Buf,
    /// One row of logits, where the caller can read it.
    pub(super) host: Vec<f32>,
    /// A row of an embedding that is not held, scaled: `[d]`.
    pub(super) row: Vec<f32>,
    /// `[MAX_BEST, 2]`: the likeliest tokens and their logits, as the backend writes them; the same on the host; read.
    pub(super) best: B::Buf,
    pub(super) best_bits: Vec<f32>,
    pub(super) likeliest: Vec<(u32, f32)>,
    pub(super) moe: Option<MoeScratch<B>>,
    pub(super) inputs: Option<InputScratch<B>>,
    /// What the routers chose, where somebody learns from it.
    pub(super) noted: Option<Noted<B>>,
}

impl<B: Backend> Scratch<B> {
    /// Scratch for `chunk` tokens at a time, at positions of up to `capacity`.
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

    /// Bytes of [`Scratch::new`] without what the backend keeps for itself.
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
            .map_or(0, |r| MoeScratch::<B>::words(&r, c.d, chunk, c.layers.iter().any(|l| l.ffn.beside)));
        let logits =
            (LOGIT_ROWS.min(chunk) + 2) * vocab + 6 * MAX_BEST + c.d.max(c.layers.len() * c.per_layer);
        let inputs = InputScratch::<B>::words(c, chunk);
        4 * (stream + moe + inputs + logits + chunk + c.rope_values(capacity))
    }

    /// Bytes that [`Scratch::new`] takes beyond [`Scratch::bytes`] where somebody learns what routers choose.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// Tokens that one call may take.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Positions that rotations reach.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
