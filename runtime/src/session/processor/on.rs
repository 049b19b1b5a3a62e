//! Wraps backends as trait objects: [`On`] is a processor, [`Held`] a timeline in its memory, and [`Gone`] a
//! timeline whose device was lost.

use super::{Accelerator, Location, Part, Processor, Timeline};
use crate::error::{Error, Result};
use crate::experts::Refinement;
use crate::kernels::cpu::CpuBackend;
use crate::kernels::{Backend, KvPart, MANY};
use crate::model::forward::{self, Passing};
use crate::model::{Memory, Model, Scratch};
use std::any::Any;
use std::sync::Arc;

/// What differs between backends.
pub(super) trait Host: Backend {
    const LOCATION: Location;

    /// The name for display.
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
    const LOCATION: Location = Location::Cpu;

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

    fn together(&self) -> usize {
        B::TOGETHER
    }

    fn least_call(&self) -> usize {
        self.0.tail(MANY).unwrap_or(MANY)
    }

    fn forward(
        &self,
        model: &Model,
        parts: &mut [Part<'_>],
        emit: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        // This path allocates nothing, so that decoding one sequence does not.
        if let [one] = parts {
            let (scratch, part) = held(one)?;
            return model.forward(&*self.0, scratch, &mut [part], emit);
        }
        let (mut scratch, mut all) = (None::<&mut Scratch<B>>, Vec::with_capacity(parts.len()));
        for part in parts {
            let (own, part) = held(part)?;
            all.push(part);
            // Take the scratch whose rotary tables reach furthest.
            match &mut scratch {
                Some(longest) if longest.capacity() >= own.capacity() => {}
                longest => *longest = Some(own),
            }
        }
        match scratch {
            Some(scratch) => model.forward(&*self.0, scratch, &mut all, emit),
            None => Ok(()),
        }
    }

    fn timeline(&self, model: &Model, context: usize, chunk: usize) -> Result<Box<dyn Timeline>> {
        let (backend, b) = (self.0.clone(), &*self.0);
        let memory = Memory::new(b, model, context, chunk)?;
        Ok(Box::new(Held { memory, scratch: Scratch::new(b, model, context, chunk)?, backend }))
    }
}

/// A timeline and the backend that owns its memory.
struct Held<B: Backend> {
    memory: Memory<B>,
    scratch: Scratch<B>,
    backend: Arc<B>,
}

/// A timeline's scratch, and its part of a call.
///
/// # Errors
/// `Device` if the timeline's memory was lost with its device.
fn held<'a, B: Host>(part: &'a mut Part<'_>) -> Result<(&'a mut Scratch<B>, forward::Part<'a, B>)> {
    let Part { timeline, tokens, pos, want } = part;
    let any: &mut dyn Any = &mut **timeline;
    let Held { memory, scratch, .. } = any.downcast_mut::<Held<B>>().ok_or_else(lost)?;
    Ok((scratch, forward::Part { memory, tokens, pos: *pos, want: *want }))
}

impl<B: Host> Timeline for Held<B> {
    fn location(&self) -> Location {
        B::LOCATION
    }

    fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    fn chunk(&self) -> usize {
        self.scratch.chunk()
    }

    fn rewind(&mut self, to: usize) -> usize {
        self.memory.rewind(&*self.backend, to)
    }

    fn mark(&mut self, pos: usize) {
        self.memory.mark(&*self.backend, pos);
    }

    fn marks(&self, held: usize) -> Vec<usize> {
        self.memory.marks(held)
    }

    fn earliest(&self) -> usize {
        self.memory.earliest()
    }

    fn places(&self, layer: usize) -> usize {
        self.memory.places(layer)
    }

    fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]) {
        self.memory.restored(held, earliest, marks);
    }

    fn read_kv(&self, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
        self.memory.read_kv(&*self.backend, layer, part, out)
    }

    fn write_kv(&mut self, layer: usize, part: &KvPart, from: &[u8]) -> Result<()> {
        self.memory.write_kv(&*self.backend, layer, part, from)
    }

    fn read_state(&self, layer: usize, at: (usize, usize), out: &mut [f32]) -> Result<()> {
        self.memory.read_state(&*self.backend, layer, at, out)
    }

    fn write_state(&mut self, layer: usize, mark: usize, from: &[f32]) -> Result<()> {
        self.memory.write_state(&*self.backend, layer, mark, from);
        Ok(())
    }
}

/// A timeline whose device was lost. Until it gets memory elsewhere, it knows only its size.
pub(in crate::session) struct Gone {
    pub(in crate::session) capacity: usize,
    pub(in crate::session) chunk: usize,
}

fn lost() -> Error {
    Error::Device("it was lost, and this session's memory with it".into())
}

impl Timeline for Gone {
    fn location(&self) -> Location {
        Location::Lost
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn chunk(&self) -> usize {
        self.chunk
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
