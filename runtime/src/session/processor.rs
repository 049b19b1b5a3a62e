//! Selects the processor of an engine, and hides its type: sessions see a [`Processor`] and a [`Timeline`] in
//! its memory. Only this module knows the types of backends.

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

/// Calls `open` with a GPU adapter, or with `None` for the CPU. If no GPU can be used and the options do not
/// require one, the CPU computes, and the second result says why.
///
/// # Errors
/// Those of `open`, and `Device` if the options require a GPU and this build has no GPU kernels.
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
/// `Device` if the model uses an operation that the backend does not have.
pub(super) fn supports(adapter: Option<Adapter>, uses: &Uses) -> Result<()> {
    match adapter {
        None => CpuBackend::supports(uses).map_err(Error::Device),
        Some(_) => gpu::supports(uses),
    }
}

/// Bytes of one layer's KV cache.
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

/// A GPU adapter to open: its index, or `None` for the first usable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(super) struct Adapter(pub(super) Option<usize>);

/// What the processor must know about the model.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(super) struct Needs {
    /// Whether the KV cache is f32.
    pub(super) kv_single: bool,
    /// Layers with routed experts.
    pub(super) routed_layers: usize,
    /// The highest level at which routed experts are read.
    pub(super) level: Level,
    /// Bytes that routed experts may take on a device; `None` for no limit.
    pub(super) expert_bytes: Option<u64>,
    /// The most experts per layer that may have an extra plane on a device.
    pub(super) refinements: usize,
}

/// An open processor.
pub(super) trait Processor: Send + Sync {
    /// The name for display.
    fn name(&self) -> String;

    /// Threads that compute; 1 if they only submit work to a device.
    fn threads(&self) -> usize;

    /// The backend, if it is the CPU.
    fn cpu(&self) -> Option<&CpuBackend>;

    /// The device, if it is a GPU.
    fn accelerator(&self) -> Option<&dyn Accelerator>;

    /// [`Backend::refine`].
    fn refine(&self, refinement: &Refinement) -> Result<()>;

    /// [`Backend::TOGETHER`].
    fn together(&self) -> usize;

    /// The fewest tokens in a call from which on the bits of a token do not depend on their number.
    fn least_call(&self) -> usize;

    /// [`Model::forward`] for timelines that this processor created.
    ///
    /// # Errors
    /// Those of computing; `Device` if a timeline's memory was lost with its device.
    fn forward(
        &self,
        model: &Model,
        parts: &mut [Part<'_>],
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()>;

    /// Allocates a timeline.
    fn timeline(&self, model: &Model, context: usize, chunk: usize) -> Result<Box<dyn Timeline>>;
}

impl dyn Processor {
    pub(super) fn is_gpu(&self) -> bool {
        self.accelerator().is_some()
    }

    /// The most tokens per call.
    pub(super) fn longest_chunk(&self) -> usize {
        self.accelerator().map_or(usize::MAX, |gpu| gpu.longest_chunk())
    }

    /// Whether the device has failed. It then cannot compute any more.
    pub(super) fn failed(&self) -> bool {
        self.accelerator().is_some_and(|gpu| gpu.failed())
    }

    /// Runs one token through the model on a GPU. This uploads all weights and tests whether the GPU can
    /// compute. No effect on the CPU.
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

/// A device with its own memory.
pub(super) trait Accelerator {
    /// The most tokens per call.
    fn longest_chunk(&self) -> usize;

    /// Counters of its work since it was opened.
    fn stats(&self) -> GpuStats;

    /// Saves the compiled kernels, if the options name a folder for them. Returns whether anything was
    /// written.
    fn save_pipelines(&self) -> Result<bool>;

    /// Frees the device and everything that the backend keeps on it.
    fn abandon(&self);

    /// Whether the device has failed.
    fn failed(&self) -> bool;

    /// For tests: makes the device fail after this many more submissions.
    fn lose_after(&self, submissions: u64, fault: GpuFault);

    /// Uploads the matrices that one operation uses together, before their first use.
    ///
    /// # Errors
    /// `Device`.
    fn bring_matrices(&self, together: &[&Matrix]) -> Result<()>;

    /// Uploads some experts of a layer before their first use.
    ///
    /// # Errors
    /// `Device`.
    fn bring(&self, of: Routed, experts: &[(u32, &Expert)]) -> Result<()>;
}

/// Where a timeline's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    Cpu,
    Gpu,
    /// It was on a device that was lost.
    Lost,
}

/// A timeline's tokens in a call.
pub(super) struct Part<'a> {
    pub(super) timeline: &'a mut dyn Timeline,
    pub(super) tokens: &'a [u32],
    /// The position of the first token.
    pub(super) pos: usize,
    pub(super) want: Want,
}

/// A timeline's memory on its processor.
pub(super) trait Timeline: Any + Send + Sync {
    fn location(&self) -> Location;

    /// Positions that the KV cache can hold.
    fn capacity(&self) -> usize;

    /// The most tokens per call.
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

    /// Copies part of a layer's keys or values out.
    ///
    /// # Errors
    /// `Device` if the memory was on a device that was lost.
    fn read_kv(&self, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()>;

    /// Copies part of a layer's keys or values in.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn write_kv(&mut self, layer: usize, part: &KvPart, from: &[u8]) -> Result<()>;

    /// Copies a layer's recurrent state out. `at` is the mark's index and the number of positions that the
    /// timeline holds.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn read_state(&self, layer: usize, at: (usize, usize), out: &mut [f32]) -> Result<()>;

    /// Copies a layer's recurrent state in, for the mark with this index.
    ///
    /// # Errors
    /// As [`Timeline::read_kv`].
    fn write_state(&mut self, layer: usize, mark: usize, from: &[f32]) -> Result<()>;
}

impl dyn Timeline {
    pub(super) fn is_gpu(&self) -> bool {
        self.location() == Location::Gpu
    }
}

/// An upper bound of the CPU's threads for these options, before the backend is opened.
pub(super) fn most_threads(threads: usize, cores: Option<&[usize]>) -> usize {
    cores.map_or(threads, |cores| threads.max(cores.len()))
}

/// The CPU backend's options.
pub(super) fn cpu_options(options: &EngineOptions, kv_single: bool) -> CpuOptions {
    CpuOptions {
        threads: options.threads,
        isa: options.isa,
        cores: options.cores.clone(),
        kv_single,
        trace: options.streaming.trace.clone(),
    }
}

/// Opens the CPU.
pub(super) fn cpu(options: CpuOptions) -> Result<Box<dyn Processor>> {
    Ok(On::boxed(CpuBackend::new(options)?))
}

/// Opens the chosen processor.
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
