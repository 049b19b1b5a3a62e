//! Backends as objects: [`On`] is a processor, [`Held`] a timeline in its memory, [`Gone`] one whose device was lost.

use super::{Accelerator, Lies, Processor, Timeline};
use crate::error::{Error, Result};
use crate::experts::Refinement;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::{Backend, KvPart};
use crate::model::forward::{Passing, Want};
use crate::model::{Model, State};
use std::sync::Arc;

/// What tells one backend from another.
pub(super) trait Host: Backend {
    const LIES: Lies;

    /// For display.
    fn name(&self) -> String;

    /// Threads that compute.
    fn threads(&self) -> usize;

    fn cpu(&self) -> Option<&CpuBackend> {
        None
    }

    fn accelerator(&self) -> Option<&dyn Accelerator> {
        None
    }
}

impl Host for CpuBackend {
    const LIES: Lies = Lies::OnCpu;

    fn name(&self) -> String {
        self.name()
    }

    fn threads(&self) -> usize {
        self.threads()
    }

    fn cpu(&self) -> Option<&CpuBackend> {
        Some(self)
    }
}

/// A backend as a processor.
pub(super) struct On<B>(Arc<B>);

impl<B: Host> On<B> {
    pub(super) fn boxed(backend: B) -> Box<dyn Processor> {
        Box::new(On(Arc::new(backend)))
    }
}

impl<B: Host> Processor for On<B> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn threads(&self) -> usize {
        self.0.threads()
    }

    fn cpu(&self) -> Option<&CpuBackend> {
        self.0.cpu()
    }

    fn accelerator(&self) -> Option<&dyn Accelerator> {
        self.0.accelerator()
    }

    fn refine(&self, refinement: &Refinement) -> Result<()> {
        self.0.refine(refinement)
    }

    fn timeline(&self, model: &Model, context: usize, chunk: usize) -> Result<Box<dyn Timeline>> {
        Ok(Box::new(Held { state: State::new(&*self.0, model, context, chunk)?, backend: self.0.clone() }))
    }
}

/// A timeline and the backend that its memory is of.
struct Held<B: Backend> {
    state: State<B>,
    backend: Arc<B>,
}

impl<B: Host> Timeline for Held<B> {
    fn lies(&self) -> Lies {
        B::LIES
    }

    fn capacity(&self) -> usize {
        self.state.capacity()
    }

    fn chunk(&self) -> usize {
        self.state.chunk()
    }

    fn forward(
        &mut self,
        model: &Model,
        tokens: &[u32],
        pos: usize,
        want: Want,
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        model.forward(&*self.backend, &mut self.state, tokens, pos, want, hear)
    }

    fn likeliest(&self) -> &[(u32, f32)] {
        self.state.likeliest()
    }

    fn rewind(&mut self, to: usize) -> usize {
        self.state.rewind(&*self.backend, to)
    }

    fn mark(&mut self, pos: usize) {
        self.state.mark(&*self.backend, pos);
    }

    fn marks(&self, held: usize) -> Vec<usize> {
        self.state.marks(held)
    }

    fn earliest(&self) -> usize {
        self.state.earliest()
    }

    fn places(&self, layer: usize) -> usize {
        self.state.places(layer)
    }

    fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]) {
        self.state.restored(held, earliest, marks);
    }

    fn read_kv(&self, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        self.state.read_kv(&*self.backend, layer, part, out)
    }

    fn write_kv(&mut self, layer: usize, part: &KvPart, from: &[u8]) -> Result<()> {
        self.state.write_kv(&*self.backend, layer, part, from)
    }

    fn read_state(&self, layer: usize, at: (usize, usize), out: &mut [f32]) -> Result<()> {
        self.state.read_state(&*self.backend, layer, at, out)
    }

    fn write_state(&mut self, layer: usize, mark: usize, from: &[f32]) -> Result<()> {
        self.state.write_state(&*self.backend, layer, mark, from);
        Ok(())
    }
}

/// A timeline that was on a device that was lost: until it has memory elsewhere it has nothing but its size.
pub(in crate::session) struct Gone {
    pub(in crate::session) capacity: usize,
    pub(in crate::session) chunk: usize,
}

fn lost() -> Error {
    Error::Device("it was lost, and this session's memory with it".into())
}

impl Timeline for Gone {
    fn lies(&self) -> Lies {
        Lies::Nowhere
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn chunk(&self) -> usize {
        self.chunk
    }

    fn forward(
        &mut self,
        _: &Model,
        _: &[u32],
        _: usize,
        _: Want,
        _: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        Err(lost())
    }

    fn likeliest(&self) -> &[(u32, f32)] {
        &[]
    }

    fn rewind(&mut self, _: usize) -> usize {
        0
    }

    fn mark(&mut self, _: usize) {}

    fn marks(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn earliest(&self) -> usize {
        0
    }

    fn places(&self, _: usize) -> usize {
        0
    }

    fn restored(&mut self, _: usize, _: usize, _: &[usize]) {}

    fn read_kv(&self, _: usize, _: &KvPart, _: &mut [u8]) -> Result<()> {
        Err(lost())
    }

    fn write_kv(&mut self, _: usize, _: &KvPart, _: &[u8]) -> Result<()> {
        Err(lost())
    }

    fn read_state(&self, _: usize, _: (usize, usize), _: &mut [f32]) -> Result<()> {
        Err(lost())
    }

    fn write_state(&mut self, _: usize, _: usize, _: &[f32]) -> Result<()> {
        Err(lost())
    }
}
