//! The memory of one sequence: what each layer keeps of earlier tokens. All of it is allocated here.

mod windows;

use super::Model;
use crate::error::Result;
use crate::kernels::{Backend, KvCopy, KvPart, Recurrent};
use crate::model::marks::{Marks, Turn};
use crate::model::memory::{KvSpec, MemorySpec};
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

/// The memory of one sequence: what layers keep of up to `capacity` positions.
pub struct Memory<B: Backend> {
    capacity: usize,
    layers: Vec<LayerMemory<B>>,
    /// The earliest position from which all window layers can continue.
    earliest: usize,
    /// Copies of the windows, if their caches are shorter than the context.
    windows: Option<WindowMarks>,
    /// The positions from which recurrent layers can continue, if there are such layers; and the slots of the
    /// current call.
    marks: Option<Marks>,
    turn: Turn,
}

impl<B: Backend> Memory<B> {
    /// Allocates memory for `capacity` positions, written in chunks of up to `chunk` tokens.
    pub fn new(backend: &B, model: &Model, capacity: usize, chunk: usize) -> Result<Memory<B>> {
        let c = &model.spec;
        let layers: Vec<_> = (c.layers.iter())
            .map(|layer| LayerMemory::new(backend, layer.memory(c.d), (capacity, chunk, c.slots())))
            .collect::<Result<_>>()?;
        let bounded = layers.iter().any(|memory| memory.bounded().is_some());
        Ok(Memory {
            capacity,
            layers,
            earliest: 0,
            windows: bounded.then(|| WindowMarks::new(model.weights.number_bytes())),
            marks: c.is_recurrent().then(|| Marks::new(c.slots())),
            turn: Turn { from: None, to: 0 },
        })
    }

    /// A layer's keys and values.
    pub(super) fn kv_mut(&mut self, layer: usize) -> &mut B::Kv {
        self.layers[layer].kv_mut()
    }

    /// A layer's state, and the slots that the current call of `tokens` tokens reads and writes.
    pub(super) fn recurrent(&mut self, layer: usize, tokens: usize) -> Recurrent<'_, B::Buf> {
        let Turn { from, to } = self.turn;
        Recurrent { tokens, state: self.layers[layer].state(), from, to }
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
        self.earliest = self.layers.iter().map(earliest).fold(self.earliest, usize::max);
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
        if windows.restore(backend, &mut self.layers, at).is_err() {
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
            let _ = windows.keep(backend, &self.layers, pos);
        }
    }

    /// The positions up to `held` that have a recurrent state, sorted.
    pub fn marks(&self, held: usize) -> Vec<usize> {
        self.marks.iter().flat_map(|marks| marks.list(held)).map(|(at, _)| at).collect()
    }

    /// The earliest position to which [`Memory::rewind`] can go without copies.
    pub fn earliest(&self) -> usize {
        self.earliest
    }

    /// Places in a layer's KV cache; 0 for a recurrent layer.
    pub fn places(&self, layer: usize) -> usize {
        match &self.layers[layer] {
            LayerMemory::Kv { places, .. } => *places,
            LayerMemory::State { .. } => 0,
        }
    }

    /// Records that all layers were restored with `held` positions. They can rewind to `earliest`, if the
    /// caches have the places, and to `marks`.
    pub fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]) {
        self.write(0, held);
        if let Some(windows) = &mut self.windows {
            // Of what was here before.
            windows.forget_behind(0);
        }
        self.earliest = self.earliest.max(earliest);
        if let Some(own) = &mut self.marks {
            own.restore(marks);
        }
    }

    /// Copies a layer's state out: that of the `i`-th position in [`Memory::marks`].
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
        match (&self.layers[layer], &self.marks) {
            (LayerMemory::State { values, slots }, Some(marks)) => {
                backend.read(&mut [(slots, marks.list(held)[i].1 * values, out)])
            }
            _ => unreachable!("a layer with a state has marks"),
        }
    }

    /// Copies a layer's state in: that of the `i`-th mark that [`Memory::restored`] will get.
    pub fn write_state(&mut self, backend: &B, layer: usize, i: usize, from: &[f32]) {
        let slots = self.layers[layer].state();
        backend.upload(slots, i * from.len(), from);
    }

    /// Copies part of a layer's keys or values out.
    ///
    /// # Errors
    /// Those of [`Backend::copy_kv`].
    pub fn read_kv(&self, backend: &B, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        backend.copy_kv(KvCopy::Out(self.layers[layer].kv(), out), part)
    }

    /// Copies part of a layer's keys or values in.
    ///
    /// # Errors
    /// Those of [`Backend::copy_kv`].
    pub fn write_kv(&mut self, backend: &B, layer: usize, part: &KvPart, from: &[u8]) -> Result<()> {
        backend.copy_kv(KvCopy::In(self.layers[layer].kv_mut(), from), part)
    }

    /// Positions that the timeline can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}
