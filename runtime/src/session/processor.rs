//! Which processor an engine computes on, and what sessions see of it: two objects, a processor and a timeline in its
//! memory. Nothing else in this room knows a backend's type.

#[cfg(feature = "gpu")]
mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "processor/no_gpu.rs"]
mod gpu;
mod on;

use super::options::{BackendChoice, EngineOptions};
use crate::error::{Error, Result};
use crate::experts::{Expert, Refinement};
use crate::kernels::cpu::{CpuBackend, CpuOptions, ScratchShape};
use crate::kernels::{Backend, KvPart, Routed, Uses};
use crate::model::Model;
use crate::model::forward::{Passing, Want};
use crate::quant::{Level, Matrix};
use crate::telemetry::{GpuFault, GpuStats};
pub(super) use on::Gone;
use on::On;
use std::any::Any;

/// Calls `open` with the adapter to compute on, or `None` for the CPU. Where a GPU cannot be had that was not demanded, the
/// CPU computes, and the second part says why.
///
/// # Errors
/// Those of `open`, and `Device` where a GPU is demanded and this build has no GPU kernels.
pub(super) fn choose<T>(
    choice: BackendChoice,
    open: impl Fn(Option<Adapter>) -> Result<T>,
) -> Result<(T, Option<String>)> {
    let why = match choice {
        BackendChoice::Cpu => return Ok((open(None)?, None)),
        BackendChoice::Gpu(index) => {
            gpu::present()?;
            return Ok((open(Some(Adapter(index)))?, None));
        }
        BackendChoice::Auto => match gpu::strongest() {
            Ok((adapter, name)) => match open(Some(adapter)) {
                Err(Error::Device(what)) => {
                    log::warn!("{name}: {what}");
                    format!("{name}: {what}")
                }
                other => return Ok((other?, None)),
            },
            Err(Some(why)) => why.to_owned(),
            Err(None) => return Ok((open(None)?, None)),
        },
    };
    log::info!("{why}; computing on the CPU");
    Ok((open(None)?, Some(format!("{why}; computing on the CPU"))))
}

/// # Errors
/// `Device` where an adapter is to compute what the GPU's kernels do not.
pub(super) fn supports(adapter: Option<Adapter>, uses: &Uses) -> Result<()> {
    match adapter {
        None => CpuBackend::supports(uses).map_err(Error::Device),
        Some(_) => gpu::supports(uses),
    }
}

/// Bytes of the keys and values of one layer.
pub(super) fn kv_bytes(gpu: bool, places: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
    let bytes = if gpu { gpu::kv_bytes } else { CpuBackend::kv_bytes };
    bytes(places, heads, dims, single)
}

/// Bytes of a backend's own scratch.
pub(super) fn scratch_bytes(gpu: bool, shape: &ScratchShape, vocab: usize, rope_dims: usize) -> usize {
    if gpu { gpu::scratch_bytes(shape, vocab, rope_dims) } else { CpuBackend::scratch_bytes(shape) }
}

/// Bytes of a matrix on a device.
pub(super) fn matrix_bytes(m: &Matrix) -> usize {
    gpu::matrix_bytes(m)
}

/// An adapter to open: its index, or the first usable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(super) struct Adapter(pub(super) Option<usize>);

/// What the processor must know of the model.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(super) struct Needs {
    /// Keys and values in single precision.
    pub(super) kv_single: bool,
    /// Layers with routed experts.
    pub(super) routed_layers: usize,
    /// The highest level that routed experts are read at.
    pub(super) level: Level,
    /// Bytes that routed experts may take on a device; `None` for no limit.
    pub(super) expert_bytes: Option<u64>,
    /// Of every layer, experts that may have one plane more on a device.
    pub(super) refinements: usize,
}

/// An open processor.
pub(super) trait Processor: Send + Sync {
    /// For display.
    fn name(&self) -> String;

    /// Threads that compute: one, where they only talk to a device.
    fn threads(&self) -> usize;

    /// The backend, where it is the CPU.
    fn cpu(&self) -> Option<&CpuBackend>;

    /// What has memory of its own, where it is a GPU.
    fn accelerator(&self) -> Option<&dyn Accelerator>;

    /// [`Backend::refine`].
    fn refine(&self, refinement: &Refinement) -> Result<()>;

    /// [`Backend::TOGETHER`].
    fn together(&self) -> usize;

    /// [`Model::forward`], of timelines that this processor made.
    ///
    /// # Errors
    /// Those of computing; `Device` where a timeline's memory is lost.
    fn forward(
        &self,
        model: &Model,
        parts: &mut [Part<'_>],
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()>;

    /// Memory for a timeline.
    fn timeline(&self, model: &Model, context: usize, chunk: usize) -> Result<Box<dyn Timeline>>;
}

impl dyn Processor {
    pub(super) fn is_gpu(&self) -> bool {
        self.accelerator().is_some()
    }

    /// The most tokens that one call may take.
    pub(super) fn longest_chunk(&self) -> usize {
        self.accelerator().map_or(usize::MAX, |gpu| gpu.longest_chunk())
    }

    /// Whether a device has failed: nothing can be computed on it any more.
    pub(super) fn failed(&self) -> bool {
        self.accelerator().is_some_and(|gpu| gpu.failed())
    }

    /// Brings all weights to a device and finds out whether it can compute with them: a token through the model. Nothing
    /// for the CPU.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn warm_up(&self, model: &Model) -> Result<()> {
        if self.is_gpu() {
            let timeline = &mut *self.timeline(model, 1, 1)?;
            let part = Part { timeline, tokens: &[0], pos: 0, want: Want::Last };
            self.forward(model, &mut [part], &mut |_| Ok(()))?;
        }
        Ok(())
    }
}

/// A device with memory of its own.
pub(super) trait Accelerator {
    /// The most tokens that one call may take.
    fn longest_chunk(&self) -> usize;

    /// What it was given to do since it was opened.
    fn stats(&self) -> GpuStats;

    /// Writes kernels that were compiled, where the options named a folder for them.
    fn save_pipelines(&self) -> Result<bool>;

    /// Lets go of the device and all that the backend keeps on it.
    fn abandon(&self);

    /// Whether it has failed.
    fn failed(&self) -> bool;

    /// For tests: makes it fail after this number of further submissions.
    fn lose_after(&self, submissions: u64, fault: GpuFault);

    /// Brings matrices that one operation takes together to the device before they are used.
    ///
    /// # Errors
    /// `Device`.
    fn bring_matrices(&self, together: &[&Matrix]) -> Result<()>;

    /// Brings some experts of a layer to the device before they are used.
    ///
    /// # Errors
    /// `Device`.
    fn bring(&self, of: Routed, experts: &[(u32, &Expert)]) -> Result<()>;
}

/// Where a timeline's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    OnCpu,
    OnGpu,
    /// It was on a device that was lost.
    Nowhere,
}

/// A timeline's tokens in a call.
pub(super) struct Part<'a> {
    pub(super) timeline: &'a mut dyn Timeline,
    pub(super) tokens: &'a [u32],
    /// The position of the first.
    pub(super) pos: usize,
    pub(super) want: Want,
}

/// A timeline's memory on its processor.
pub(super) trait Timeline: Any + Send + Sync {
    fn lies(&self) -> Lies;

    /// Positions that the cache holds.
    fn capacity(&self) -> usize;

    /// Tokens that one call may take.
    fn chunk(&self) -> usize;

    /// [`Memory::rewind`](crate::model::Memory::rewind).
    fn rewind(&mut self, to: usize) -> usize;

    /// [`Memory::mark`](crate::model::Memory::mark).
    fn mark(&mut self, pos: usize);

    /// [`Memory::marks`](crate::model::Memory::marks).
    fn marks(&self, held: usize) -> Vec<usize>;

    /// [`Memory::earliest`](crate::model::Memory::earliest).
    fn earliest(&self) -> usize;

    /// [`Memory::places`](crate::model::Memory::places).
    fn places(&self, layer: usize) -> usize;

    /// [`Memory::restored`](crate::model::Memory::restored).
    fn restored(&mut self, held: usize, earliest: usize, marks: &[usize]);

    /// Copies a part of a layer's keys and values out.
    ///
    /// # Errors
    /// `Device` where it was on one that is lost.
    fn read_kv(&self, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()>;

    /// Copies a part of a layer's keys and values in.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn write_kv(&mut self, layer: usize, part: &KvPart, from: &[u8]) -> Result<()>;

    /// Copies a layer's state out, of a mark by its number, of a timeline that holds `held` positions.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn read_state(&self, layer: usize, at: (usize, usize), out: &mut [f32]) -> Result<()>;

    /// Copies a layer's state in, as that of a mark.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn write_state(&mut self, layer: usize, mark: usize, from: &[f32]) -> Result<()>;
}

impl dyn Timeline {
    pub(super) fn is_gpu(&self) -> bool {
        self.lies() == Lies::OnGpu
    }
}

/// An upper bound of the CPU's threads for these options, before it is opened.
pub(super) fn most_threads(threads: usize, cores: Option<&[usize]>) -> usize {
    cores.map_or(threads, |cores| threads.max(cores.len()))
}

/// The CPU as the options ask for it.
pub(super) fn cpu_options(options: &EngineOptions, kv_single: bool) -> CpuOptions {
    CpuOptions {
        threads: options.threads,
        isa: options.isa,
        cores: options.cores.clone(),
        kv_single,
        trace: options.streaming.trace.clone(),
    }
}

/// The CPU.
pub(super) fn cpu(options: CpuOptions) -> Result<Box<dyn Processor>> {
    Ok(On::boxed(CpuBackend::new(options)?))
}

/// The processor that was chosen.
pub(super) fn open(
    adapter: Option<Adapter>,
    options: &EngineOptions,
    needs: &Needs,
) -> Result<Box<dyn Processor>> {
    match adapter {
        None => cpu(cpu_options(options, needs.kv_single)),
        Some(adapter) => gpu::open(adapter, options, needs),
    }
}
