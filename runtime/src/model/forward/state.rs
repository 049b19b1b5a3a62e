//! The memory of one timeline: what each layer keeps, and scratch, all of it taken when it is made, and counted where it is taken.

mod scratch;
mod windows;

use super::{LOGIT_ROWS, Model, Noted};
use crate::error::Result;
use crate::kernels::{Backend, KvCopy, KvPart, MAX_BEST, RopeTable};
use crate::model::Spec;
use crate::model::marks::{Marks, Turn};
use crate::model::memory::{KvSpec, MemorySpec};
use crate::model::spec::AttentionSpec;
pub(super) use scratch::{DeltaScratch, InputScratch, MoeScratch};
use windows::WindowMarks;

/// What one layer keeps.
pub(super) enum LayerMemory<B: Backend> {
    Kv {
        spec: KvSpec,
        places: usize,
        /// Whether these are fewer than positions.
        bounded: bool,
        kv: B::Kv,
    },
    /// `[slots, values]`.
    State { values: usize, slots: B::Buf },
}

impl<B: Backend> LayerMemory<B> {
    fn new(
        backend: &B,
        spec: MemorySpec,
        (capacity, chunk, slots): (usize, usize, usize),
    ) -> Result<LayerMemory<B>> {
        Ok(match spec {
            MemorySpec::Kv(spec) => {
                let places = spec.places(capacity, chunk);
                let kv = backend.alloc_kv(places, spec.heads, [spec.head_dim, spec.v_dim])?;
                LayerMemory::Kv { spec, places, bounded: places < capacity, kv }
            }
            MemorySpec::State(values) => LayerMemory::State { values, slots: backend.alloc(slots * values)? },
        })
    }

    pub(super) fn kv(&self) -> &B::Kv {
        match self {
            LayerMemory::Kv { kv, .. } => kv,
            LayerMemory::State { .. } => unreachable!("a layer with attention has keys and values"),
        }
    }

    pub(super) fn kv_mut(&mut self) -> &mut B::Kv {
        match self {
            LayerMemory::Kv { kv, .. } => kv,
            LayerMemory::State { .. } => unreachable!("a layer with attention has keys and values"),
        }
    }

    /// Its window and places, where these are fewer than positions.
    pub(super) fn bounded(&self) -> Option<(KvSpec, usize)> {
        match self {
            LayerMemory::Kv { spec, places, bounded: true, .. } => Some((*spec, *places)),
            _ => None,
        }
    }

    pub(super) fn state(&mut self) -> &mut B::Buf {
        match self {
            LayerMemory::State { slots, .. } => slots,
            LayerMemory::Kv { .. } => unreachable!("a recurrent layer has a state"),
        }
    }
}

/// The memory of one timeline: what layers keep, and scratch for chunks of up to `chunk` tokens.
pub struct State<B: Backend> {
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    /// Of each of the model's rotary embeddings.
    pub(super) ropes: Vec<RopeTable>,
    pub(super) memory: Vec<LayerMemory<B>>,
    /// The earliest position that layers with a window can go on from.
    earliest: usize,
    /// Copies of what they see, where their caches are shorter than the context.
    windows: Option<WindowMarks>,
    /// Where layers with a state can go on from, if there are any; and the call at hand.
    marks: Option<Marks>,
    pub(super) turn: Turn,
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

impl<B: Backend> State<B> {
    /// Memory for `capacity` positions, taken in chunks of up to `chunk` tokens.
    pub fn new(backend: &B, model: &Model, capacity: usize, chunk: usize) -> Result<State<B>> {
        let (c, w) = (&model.spec, &model.weights);
        let q_width = c.most(AttentionSpec::q_width);
        let (kv_width, v_width) = (c.most(AttentionSpec::kv_width), c.most(AttentionSpec::v_width));
        let moe = match c.router() {
            None => None,
            Some(router) => Some(MoeScratch::new(backend, model, &router, chunk)?),
        };
        let mut state = State {
            capacity,
            chunk,
            ropes: c.rope_tables(capacity, w.rope_factors.as_deref()),
            memory: (c.layers.iter())
                .map(|layer| LayerMemory::new(backend, layer.memory(c.d), (capacity, chunk, c.slots())))
                .collect::<Result<_>>()?,
            earliest: 0,
            windows: None,
            marks: c.is_recurrent().then(|| Marks::new(c.slots())),
            turn: Turn { from: None, to: 0 },
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
        };
        if state.memory.iter().any(|memory| memory.bounded().is_some()) {
            state.windows = Some(WindowMarks::new(w.number_bytes()));
        }
        Ok(state)
    }

    /// Bytes of [`State::new`] without what layers keep and what the backend keeps for itself.
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
        4 * (stream + moe + inputs + logits + c.rope_values(capacity))
    }

    /// Bytes that [`State::new`] takes beyond [`State::bytes`] where somebody learns what routers choose.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// Tokens at `pos..end` begin to pass through: what they take the places of is gone, even if they do not arrive.
    pub(super) fn begin(&mut self, pos: usize, end: usize) {
        self.write(pos, end);
        if let Some(windows) = &mut self.windows {
            windows.forget_behind(pos);
        }
        if let Some(marks) = &mut self.marks {
            self.turn = marks.begin(pos);
        }
    }

    /// They have, all of them, up to `end`.
    pub(super) fn done(&mut self, end: usize) {
        if let Some(marks) = &mut self.marks {
            marks.done(self.turn, end);
        }
    }

    fn write(&mut self, pos: usize, end: usize) {
        if pos == 0 {
            self.earliest = 0;
        }
        let earliest = |memory: &LayerMemory<B>| match memory {
            LayerMemory::Kv { spec, places, .. } => spec.earliest(*places, end),
            LayerMemory::State { .. } => 0,
        };
        self.earliest = self.memory.iter().map(earliest).fold(self.earliest, usize::max);
    }

    /// Goes back to the last position up to `to` that tokens can follow, and returns it: what lies between has to be read again.
    pub fn rewind(&mut self, backend: &B, to: usize) -> usize {
        let at = self.marks.as_ref().map_or(to, |marks| marks.rewind(to));
        if at >= self.earliest {
            return at;
        }
        let Some(windows) = &mut self.windows else { return 0 };
        windows.forget_behind(to);
        let stands = |at: &usize| self.marks.as_ref().is_none_or(|marks| marks.rewind(*at) == *at);
        let Some(at) = windows.positions().filter(stands).max() else { return 0 };
        if windows.restore(backend, &mut self.memory, at).is_err() {
            // A device that is lost says so with the next token.
            return 0;
        }
        self.earliest = at;
        at
    }

    /// `pos`, where the timeline is, will be gone back to.
    pub fn mark(&mut self, backend: &B, pos: usize) {
        if let Some(marks) = &mut self.marks {
            marks.keep(pos);
        }
        if let Some(windows) = self.windows.as_mut().filter(|_| pos > 0) {
            // Without a copy there is one position less to go back to; a device that is lost says so with the next token.
            let _ = windows.keep(backend, &self.memory, pos);
        }
    }

    /// The positions up to `held` that a state stands for, in order.
    pub fn marks(&self, held: usize) -> Vec<usize> {
        self.marks.iter().flat_map(|marks| marks.list(held)).map(|(at, _)| at).collect()
    }

    /// The earliest position that [`State::rewind`] does not go beyond.
    pub fn earliest(&self) -> usize {
        self.earliest
    }

    /// Places of a layer's keys and values.
    pub fn places(&self, layer: usize) -> usize {
        match &self.memory[layer] {
            LayerMemory::Kv { places, .. } => *places,
            LayerMemory::State { .. } => 0,
        }
    }

    /// All layers were given what they hold of `held` positions, so that they can go back to `earliest` where they have the places,
    /// and to `marks`.
    pub fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]) {
        self.write(0, held);
        self.earliest = self.earliest.max(earliest);
        if let Some(own) = &mut self.marks {
            own.restore(marks);
        }
    }

    /// Copies a layer's state at the `i`-th of [`State::marks`] out.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn read_state(
        &self,
        backend: &B,
        layer: usize,
        (i, held): (usize, usize),
        out: &mut [f32],
    ) -> Result<()> {
        match (&self.memory[layer], &self.marks) {
            (LayerMemory::State { values, slots }, Some(marks)) => {
                backend.read(&mut [(slots, marks.list(held)[i].1 * values, out)])
            }
            _ => unreachable!("a layer with a state has marks"),
        }
    }

    /// Copies a layer's state at the `i`-th of the marks that [`State::restored`] will get in.
    pub fn write_state(&mut self, backend: &B, layer: usize, i: usize, from: &[f32]) {
        let slots = self.memory[layer].state();
        backend.upload(slots, i * from.len(), from);
    }

    /// Copies a part of a layer's keys or values out.
    ///
    /// # Errors
    /// As [`Backend::copy_kv`].
    pub fn read_kv(&self, backend: &B, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        backend.copy_kv(KvCopy::Out(self.memory[layer].kv(), out), part)
    }

    /// Copies a part of a layer's keys or values in.
    ///
    /// # Errors
    /// As [`Backend::copy_kv`].
    pub fn write_kv(&mut self, backend: &B, layer: usize, part: &KvPart, from: &[u8]) -> Result<()> {
        backend.copy_kv(KvCopy::In(self.memory[layer].kv_mut(), from), part)
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
