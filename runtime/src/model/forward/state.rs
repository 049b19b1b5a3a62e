//! The memory of one timeline: what each layer keeps, and scratch, all of it taken when it is made, and counted where it is taken.

use super::inputs::InputScratch;
use super::routed::MoeScratch;
use super::{LOGIT_ROWS, Model, Noted};
use crate::error::Result;
use crate::kernels::{Backend, KvPart, MAX_BEST, RopeTable};
use crate::model::Spec;
use crate::model::memory::{KvSpec, MemorySpec};
use crate::model::spec::AttentionSpec;

/// What one layer keeps.
pub(super) struct LayerMemory<B: Backend> {
    spec: KvSpec,
    places: usize,
    pub(super) kv: B::Kv,
}

impl<B: Backend> LayerMemory<B> {
    fn new(backend: &B, spec: MemorySpec, capacity: usize, chunk: usize) -> Result<LayerMemory<B>> {
        let MemorySpec::Kv(spec) = spec;
        let places = spec.places(capacity, chunk);
        Ok(LayerMemory { spec, places, kv: backend.alloc_kv(places, spec.heads, spec.head_dim)? })
    }
}

/// The memory of one timeline: what layers keep, and scratch for chunks of up to `chunk` tokens.
pub struct State<B: Backend> {
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    /// Of each of the model's rotary embeddings.
    pub(super) ropes: Vec<RopeTable>,
    pub(super) memory: Vec<LayerMemory<B>>,
    /// The earliest position that all layers can go on from.
    earliest: usize,
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
            ropes: c.rope_tables(capacity, w.rope_factors.as_deref()),
            memory: (c.layers.iter())
                .map(|layer| LayerMemory::new(backend, layer.memory(), capacity, chunk))
                .collect::<Result<_>>()?,
            earliest: 0,
            x: backend.alloc(chunk * c.d)?,
            h: backend.alloc(chunk * c.d)?,
            y: backend.alloc(chunk * c.d)?,
            q: backend.alloc(chunk * q_width)?,
            k: backend.alloc(chunk * kv_width)?,
            v: backend.alloc(chunk * kv_width)?,
            attn: backend.alloc(chunk * q_width)?,
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

    /// Bytes of [`State::new`] without the KV cache and what the backend keeps for itself.
    pub fn bytes(spec: &Spec, vocab: usize, capacity: usize, chunk: usize) -> usize {
        let c = spec;
        let stream =
            chunk * (3 * c.d + 2 * c.most(AttentionSpec::q_width) + 2 * c.most(AttentionSpec::kv_width));
        let moe = c
            .router()
            .map_or(0, |r| MoeScratch::<B>::words(&r, c.d, chunk, c.layers.iter().any(|l| l.ffn.beside)));
        let logits =
            (LOGIT_ROWS.min(chunk) + 2) * vocab + 6 * MAX_BEST + c.d.max(c.layers.len() * c.per_layer);
        let inputs = InputScratch::<B>::words(c, chunk);
        4 * (stream + moe + inputs + logits + c.rope_values(capacity))
    }

    /// Bytes that [`State::new`] takes beyond [`State::bytes`] where somebody learns what routers choose.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// Tokens at `pos..end` begin to pass through: what they take the places of is gone, even if they do not arrive.
    pub(super) fn write(&mut self, pos: usize, end: usize) {
        if pos == 0 {
            self.earliest = 0;
        }
        let earliest = |memory: &LayerMemory<B>| memory.spec.earliest(memory.places, end);
        self.earliest = self.memory.iter().map(earliest).fold(self.earliest, usize::max);
    }

    /// The last position up to `to` that tokens can follow: what lies between has to be read again.
    pub fn rewind(&self, to: usize) -> usize {
        if to < self.earliest { 0 } else { to }
    }

    /// The earliest position that [`State::rewind`] does not go beyond.
    pub fn earliest(&self) -> usize {
        self.earliest
    }

    /// Places of a layer's keys and values.
    pub fn places(&self, layer: usize) -> usize {
        self.memory[layer].places
    }

    /// All layers were given what they hold of `held` positions, so that they can go back to `earliest` where they have the places.
    pub fn restored(&mut self, held: usize, earliest: usize) {
        self.write(0, held);
        self.earliest = self.earliest.max(earliest);
    }

    /// Copies a part of a layer's keys or values out ([`Backend::read_kv`]).
    ///
    /// # Errors
    /// As [`Backend::read_kv`].
    pub fn read_kv(&self, backend: &B, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        backend.read_kv(&self.memory[layer].kv, part, out)
    }

    /// Copies a part of a layer's keys or values in.
    pub fn write_kv(&mut self, backend: &B, layer: usize, part: &KvPart, from: &[u8]) {
        backend.write_kv(&mut self.memory[layer].kv, part, from);
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
