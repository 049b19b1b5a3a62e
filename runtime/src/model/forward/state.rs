//! The memory of one timeline: what each layer remembers, and scratch buffers. All of it is allocated, and
//! counted for the memory plan, here.

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

/// The memory of one layer.
pub(super) enum LayerMemory<B: Backend> {
    Kv {
        spec: KvSpec,
        places: usize,
        /// Whether the cache has fewer places than the context has positions.
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

    /// The cache's dimensions and places, if it has fewer places than positions.
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

/// The memory of one timeline: the layers' memory, and scratch for chunks of up to `chunk` tokens.
pub struct State<B: Backend> {
    pub(super) capacity: usize,
    pub(super) chunk: usize,
    /// The tables of the rotary embeddings, as in [`Spec::ropes`].
    pub(super) ropes: Vec<RopeTable>,
    pub(super) memory: Vec<LayerMemory<B>>,
    /// The earliest position from which all window layers can continue.
    earliest: usize,
    /// Copies of the windows, if their caches are shorter than the context.
    windows: Option<WindowMarks>,
    /// The positions from which recurrent layers can continue, if there are such layers; and the slots of the
    /// current call.
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
    /// `[chunk, 3 · d]`, if layers have convolutions.
    pub(super) conv: B::Buf,
    /// `[chunk, heads · head_dim]`, if the attention output is gated.
    pub(super) gate: B::Buf,
    /// Scratch of the gated delta nets.
    pub(super) delta: Option<DeltaScratch<B>>,
    /// `[LOGIT_ROWS, vocab]`.
    pub(super) logits: B::Buf,
    /// One row of logits on the host.
    pub(super) host: Vec<f32>,
    /// One scaled row of an embedding that is read from storage, `[d]`.
    pub(super) row: Vec<f32>,
    /// The likeliest tokens with their logits: as the backend writes them (`[MAX_BEST, 2]`), copied to the
    /// host, and decoded.
    pub(super) best: B::Buf,
    pub(super) best_bits: Vec<f32>,
    pub(super) likeliest: Vec<(u32, f32)>,
    pub(super) moe: Option<MoeScratch<B>>,
    pub(super) inputs: Option<InputScratch<B>>,
    /// The routers' choices, if the expert source learns from them.
    pub(super) noted: Option<Noted<B>>,
}

impl<B: Backend> State<B> {
    /// Allocates memory for `capacity` positions, in chunks of up to `chunk` tokens.
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

    /// Bytes that [`State::new`] allocates, without the layers' memory and the backend's own.
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

    /// More bytes that [`State::new`] allocates if the expert source learns from the routers' choices.
    pub fn noted_bytes(spec: &Spec, chunk: usize) -> usize {
        spec.router().map_or(0, |r| Noted::<B>::bytes(spec.layers.len(), r.top_k, chunk))
    }

    /// Starts a call with tokens at `pos..end`. What their cache places held is lost, even if the call fails.
    pub(super) fn begin(&mut self, pos: usize, end: usize) {
        self.write(pos, end);
        if let Some(windows) = &mut self.windows {
            windows.forget_behind(pos);
        }
        if let Some(marks) = &mut self.marks {
            self.turn = marks.begin(pos);
        }
    }

    /// Completes a call: all tokens up to `end` were processed.
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

    /// Rewinds to the last position, at most `to`, from which tokens can continue, and returns it. The caller
    /// must process the tokens between again.
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
            // If the device is lost, the next call reports it.
            return 0;
        }
        self.earliest = at;
        at
    }

    /// Remembers `pos`, the current position, as one to which the caller will rewind.
    pub fn mark(&mut self, backend: &B, pos: usize) {
        if let Some(marks) = &mut self.marks {
            marks.keep(pos);
        }
        if let Some(windows) = self.windows.as_mut().filter(|_| pos > 0) {
            // If copying fails, there is one position less to rewind to. If the device is lost, the next call
            // reports it.
            let _ = windows.keep(backend, &self.memory, pos);
        }
    }

    /// The positions up to `held` that have a recurrent state, sorted.
    pub fn marks(&self, held: usize) -> Vec<usize> {
        self.marks.iter().flat_map(|marks| marks.list(held)).map(|(at, _)| at).collect()
    }

    /// The earliest position to which [`State::rewind`] can go without copies.
    pub fn earliest(&self) -> usize {
        self.earliest
    }

    /// Places in a layer's KV cache; 0 for a recurrent layer.
    pub fn places(&self, layer: usize) -> usize {
        match &self.memory[layer] {
            LayerMemory::Kv { places, .. } => *places,
            LayerMemory::State { .. } => 0,
        }
    }

    /// Records that all layers were restored with `held` positions. They can rewind to `earliest`, if the
    /// caches have the places, and to `marks`.
    pub fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]) {
        self.write(0, held);
        self.earliest = self.earliest.max(earliest);
        if let Some(own) = &mut self.marks {
            own.restore(marks);
        }
    }

    /// Copies a layer's state out: that of the `i`-th position in [`State::marks`].
    ///
    /// # Errors
    /// Those of [`Backend::read`].
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

    /// Copies a layer's state in: that of the `i`-th mark that [`State::restored`] will get.
    pub fn write_state(&mut self, backend: &B, layer: usize, i: usize, from: &[f32]) {
        let slots = self.memory[layer].state();
        backend.upload(slots, i * from.len(), from);
    }

    /// Copies part of a layer's keys or values out.
    ///
    /// # Errors
    /// Those of [`Backend::copy_kv`].
    pub fn read_kv(&self, backend: &B, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        backend.copy_kv(KvCopy::Out(self.memory[layer].kv(), out), part)
    }

    /// Copies part of a layer's keys or values in.
    ///
    /// # Errors
    /// Those of [`Backend::copy_kv`].
    pub fn write_kv(&mut self, backend: &B, layer: usize, part: &KvPart, from: &[u8]) -> Result<()> {
        backend.copy_kv(KvCopy::In(self.memory[layer].kv_mut(), from), part)
    }

    /// Positions that the timeline can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The greatest logits of the last call with [`Want::Best`](super::Want::Best), with their tokens,
    /// greatest first.
    pub fn likeliest(&self) -> &[(u32, f32)] {
        &self.likeliest
    }

    /// The most tokens per call.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
}
