//! The memory of one timeline: its KV cache and scratch, all of it taken when it is made, and counted where it is taken.

use super::routed::MoeScratch;
use super::{LOGIT_ROWS, Model, Noted};
use crate::error::Result;
use crate::kernels::{Backend, KvPart, MAX_BEST, RopeTable};
use crate::model::Spec;
use crate::model::spec::AttentionSpec;

/// The memory of one timeline: KV cache, and scratch for chunks of up to `chunk` tokens.
pub struct State<B: Backend> {
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    pub(super) rope: RopeTable,
    pub(super) kv: Vec<B::Kv>,
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
    /// `[LOGIT_ROWS, vocab]`.
    pub(super) logits: B::Buf,
    /// One row of logits, where the caller can read it.
    pub(super) host: Vec<f32>,
    /// `[MAX_BEST, 2]`: the likeliest tokens and their logits, as the backend writes them; the same on the host; read.
    pub(super) best: B::Buf,
    pub(super) best_bits: Vec<f32>,
    pub(super) likeliest: Vec<(u32, f32)>,
    pub(super) moe: Option<MoeScratch<B>>,
    /// What the routers chose, where somebody learns from it.
    pub(super) noted: Option<Noted<B>>,
}

impl<B: Backend> State<B> {
    /// Memory for `capacity` positions, taken in chunks of up to `chunk` tokens.
    pub fn new(backend: &B, model: &Model, capacity: usize, chunk: usize) -> Result<State<B>> {
        let (c, w) = (&model.spec, &model.weights);
        let (q_width, kv_width) = (c.most(AttentionSpec::q_width), c.most(AttentionSpec::kv_width));
        let moe = match c.router() {
            None => None,
            Some(router) => Some(MoeScratch::new(backend, model, &router, chunk)?),
        };
        Ok(State {
            capacity,
            chunk,
            rope: c.rope.table(capacity, w.rope_factors.as_deref()),
            kv: (c.layers.iter().map(|l| &l.attention))
                .map(|a| backend.alloc_kv(capacity, a.kv_heads, a.head_dim))
                .collect::<Result<_>>()?,
            x: backend.alloc(chunk * c.d)?,
            h: backend.alloc(chunk * c.d)?,
            y: backend.alloc(chunk * c.d)?,
            q: backend.alloc(chunk * q_width)?,
            k: backend.alloc(chunk * kv_width)?,
            v: backend.alloc(chunk * kv_width)?,
            attn: backend.alloc(chunk * q_width)?,
            logits: backend.alloc(LOGIT_ROWS.min(chunk) * w.vocab())?,
            host: vec![0.0; w.vocab()],
            best: backend.alloc(2 * MAX_BEST)?,
            best_bits: vec![0.0; 2 * MAX_BEST],
            likeliest: Vec::with_capacity(MAX_BEST),
            moe,
            noted: match (c.router(), model.experts.refine()) {
                (Some(router), Some(_)) => Some(Noted::new(backend, c.layers.len(), router, chunk)?),
                _ => None,
            },
        })
    }

    /// Bytes of [`State::new`] without the KV cache and what the backend keeps for itself.
    pub fn bytes(spec: &Spec, vocab: usize, capacity: usize, chunk: usize) -> usize {
        let c = spec;
        let stream =
            chunk * (3 * c.d + 2 * c.most(AttentionSpec::q_width) + 2 * c.most(AttentionSpec::kv_width));
        let moe = c.router().map_or(0, |r| MoeScratch::<B>::words(&r, c.d, chunk));
        let logits = (LOGIT_ROWS.min(chunk) + 2) * vocab + 6 * MAX_BEST;
        4 * (stream + moe + logits + capacity * (c.rope.dims + 1))
    }

    /// Bytes that [`State::new`] takes beyond [`State::bytes`] where somebody learns what routers choose.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// Copies a part of a layer's keys or values out ([`Backend::read_kv`]).
    ///
    /// # Errors
    /// As [`Backend::read_kv`].
    pub fn read_kv(&self, backend: &B, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        backend.read_kv(&self.kv[layer], part, out)
    }

    /// Copies a part of a layer's keys or values in.
    pub fn write_kv(&mut self, backend: &B, layer: usize, part: &KvPart, from: &[u8]) {
        backend.write_kv(&mut self.kv[layer], part, from);
    }

    /// Positions that the cache holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The greatest logits that the last call was asked for ([`Want::Best`](super::Want::Best)), with their tokens, greatest
    /// first.
    pub fn likeliest(&self) -> &[(u32, f32)] {
        &self.likeliest
    }

    /// Tokens that one call may take.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
}
