//! Which processor an engine computes on. The one place that knows them all: everything else sees a `Backend`.

use super::options::{BackendChoice, EngineOptions};
use crate::error::{Error, Result};
use crate::experts::{Expert, Refinement};
use crate::kernels::cpu::{CpuBackend, CpuOptions, ScratchShape};
#[cfg(feature = "gpu")]
use crate::kernels::gpu::{GpuBackend, GpuKv, GpuOptions, adapters, worth_asking};
use crate::kernels::{Backend, Routed, Uses};
use crate::model::forward::{Passing, Want};
use crate::model::{Model, State};
use crate::quant::Matrix;
use crate::telemetry::{GpuFault, GpuStats};

/// Calls `open` with the adapter to compute on, or `None` for the CPU. Where a GPU cannot be had that was not demanded, the
/// CPU computes, and the second part says why.
///
/// # Errors
/// Those of `open`, and `Device` where a GPU is demanded and this build has no GPU kernels.
pub(super) fn choose<T>(
    choice: BackendChoice,
    open: impl Fn(Option<Adapter>) -> Result<T>,
) -> Result<(T, Option<String>)> {
    match choice {
        BackendChoice::Cpu => Ok((open(None)?, None)),
        #[cfg(feature = "gpu")]
        BackendChoice::Gpu(index) => Ok((open(Some(Adapter(index)))?, None)),
        #[cfg(feature = "gpu")]
        BackendChoice::Auto => {
            let all = if worth_asking() { adapters() } else { Vec::new() };
            let why = match all.iter().find(|a| !a.software && a.missing.is_none()) {
                Some(real) => match open(Some(Adapter(Some(real.index)))) {
                    Err(Error::Device(what)) => {
                        log::warn!("{} ({}): {what}", real.name, real.driver);
                        format!("{}: {what}", real.name)
                    }
                    other => return Ok((other?, None)),
                },
                None if all.is_empty() => "no GPU was found".to_owned(),
                None => "no GPU was found but software".to_owned(),
            };
            log::info!("{why}; computing on the CPU");
            Ok((open(None)?, Some(format!("{why}; computing on the CPU"))))
        }
        #[cfg(not(feature = "gpu"))]
        BackendChoice::Auto => Ok((open(None)?, None)),
        #[cfg(not(feature = "gpu"))]
        BackendChoice::Gpu(_) => Err(no_gpu()),
    }
}

#[cfg(not(feature = "gpu"))]
fn no_gpu() -> Error {
    Error::Device("this build has no GPU kernels (feature `gpu`)".into())
}

/// # Errors
/// `Device` where an adapter is to compute what the GPU's kernels do not.
pub(super) fn supports(adapter: Option<Adapter>, uses: &Uses) -> Result<()> {
    let asked = match adapter {
        None => CpuBackend::supports(uses),
        #[cfg(feature = "gpu")]
        Some(_) => GpuBackend::supports(uses),
        #[cfg(not(feature = "gpu"))]
        Some(_) => return Err(no_gpu()),
    };
    asked.map_err(Error::Device)
}

/// Bytes of the keys and values of one layer.
pub(super) fn kv_bytes(gpu: bool, places: usize, heads: usize, head_dim: usize, single: bool) -> usize {
    #[cfg(feature = "gpu")]
    if gpu {
        return GpuKv::bytes(places, heads, head_dim, single);
    }
    let _ = gpu;
    CpuBackend::kv_bytes(places, heads, head_dim, single)
}

/// Bytes of what a backend keeps for itself.
pub(super) fn scratch_bytes(gpu: bool, shape: &ScratchShape, vocab: usize, rope_dims: usize) -> usize {
    #[cfg(feature = "gpu")]
    if gpu {
        return GpuBackend::scratch_bytes(shape, vocab, rope_dims);
    }
    let _ = (gpu, vocab, rope_dims);
    CpuBackend::scratch_bytes(shape)
}

/// Bytes of a matrix on a device.
pub(super) fn matrix_bytes(m: &Matrix) -> usize {
    #[cfg(feature = "gpu")]
    return GpuBackend::matrix_bytes(m);
    #[cfg(not(feature = "gpu"))]
    m.bytes()
}

/// An adapter to open: its index, or the first usable one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Adapter(#[cfg_attr(not(feature = "gpu"), allow(dead_code))] pub(super) Option<usize>);

/// What the processor must know of the model.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(super) struct Needs {
    /// Keys and values in single precision.
    pub(super) kv_single: bool,
    /// Layers with routed experts.
    pub(super) routed_layers: usize,
    /// The highest level that routed experts are read at.
    pub(super) level: crate::quant::Level,
    /// Bytes that routed experts may take on a device; `None` for no limit.
    pub(super) expert_bytes: Option<u64>,
    /// Of every layer, experts that may have one plane more on a device.
    pub(super) refinements: usize,
}

/// An open processor.
pub(super) enum Processor {
    Cpu(Box<CpuBackend>),
    #[cfg(feature = "gpu")]
    Gpu(Box<GpuBackend>),
}

/// A timeline's memory on its processor.
pub(super) enum Timeline {
    Cpu(Box<State<CpuBackend>>),
    #[cfg(feature = "gpu")]
    Gpu(Box<State<GpuBackend>>),
    /// It was on a device that was lost.
    Gone {
        capacity: usize,
        chunk: usize,
    },
}

/// Threads that the CPU computes with at most where so many, and these cores, are asked for: as far as that is known before it
/// is opened.
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

impl Processor {
    pub(super) fn cpu_with(options: CpuOptions) -> Result<Self> {
        Ok(Processor::Cpu(Box::new(CpuBackend::new(options)?)))
    }

    pub(super) fn open(adapter: Option<Adapter>, options: &EngineOptions, needs: &Needs) -> Result<Self> {
        match adapter {
            None => Self::cpu_with(cpu_options(options, needs.kv_single)),
            #[cfg(feature = "gpu")]
            Some(Adapter(index)) => {
                let gpu = GpuOptions {
                    adapter: index,
                    kv_single: needs.kv_single,
                    expert_bytes: needs.expert_bytes,
                    routed_layers: needs.routed_layers,
                    level: needs.level,
                    refinements: needs.refinements,
                    pipelines: options.pipelines.clone(),
                    variants: options.gpu_variants,
                    clock: options.gpu_clock,
                    binding_bytes: options.gpu_binding_bytes,
                    max_groups: None,
                };
                let gpu = GpuBackend::new(&gpu)?;
                log::debug!("GPU: {}", gpu.name());
                Ok(Processor::Gpu(Box::new(gpu)))
            }
            #[cfg(not(feature = "gpu"))]
            Some(_) => Err(no_gpu()),
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Processor::Cpu(cpu) => cpu.name(),
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => gpu.name(),
        }
    }

    /// Threads that compute: one, where they only talk to a device.
    pub(super) fn threads(&self) -> usize {
        match self {
            Processor::Cpu(cpu) => cpu.threads(),
            #[cfg(feature = "gpu")]
            Processor::Gpu(_) => 1,
        }
    }

    pub(super) fn is_gpu(&self) -> bool {
        !matches!(self, Processor::Cpu(_))
    }

    /// The most tokens that one call may take.
    pub(super) fn longest_chunk(&self) -> usize {
        match self {
            Processor::Cpu(_) => usize::MAX,
            #[cfg(feature = "gpu")]
            Processor::Gpu(_) => crate::kernels::gpu::MAX_TOKENS,
        }
    }

    pub(super) fn cpu(&self) -> Result<&CpuBackend> {
        match self {
            Processor::Cpu(cpu) => Ok(cpu),
            #[cfg(feature = "gpu")]
            Processor::Gpu(_) => Err(Error::Device("this engine computes on a GPU".into())),
        }
    }

    pub(super) fn gpu_stats(&self) -> Option<GpuStats> {
        match self {
            Processor::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => Some(gpu.stats()),
        }
    }

    /// Writes kernels that were compiled, where the options named a folder for them.
    pub(super) fn save_pipelines(&self) -> Result<bool> {
        match self {
            Processor::Cpu(_) => Ok(false),
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => gpu.save_pipelines(),
        }
    }

    /// Lets go of a device and all that this backend keeps on it.
    pub(super) fn abandon(&self) {
        #[cfg(feature = "gpu")]
        if let Processor::Gpu(gpu) = self {
            gpu.abandon();
        }
    }

    /// For tests: makes a device fail after so many more submissions.
    pub(super) fn lose_after(&self, submissions: u64, fault: GpuFault) {
        #[cfg(feature = "gpu")]
        if let Processor::Gpu(gpu) = self {
            gpu.lose_after(submissions, fault);
        }
        let _ = (submissions, fault);
    }

    /// Whether a device has failed: nothing can be computed on it any more.
    pub(super) fn failed(&self) -> bool {
        match self {
            Processor::Cpu(_) => false,
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => gpu.failed(),
        }
    }

    /// Brings all weights to a device and finds out whether it can compute with them: a token through the model. Nothing
    /// for the CPU.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn warm_up(&self, model: &Model) -> Result<()> {
        if self.is_gpu() {
            let mut timeline = self.timeline(model, 1, 1)?;
            self.forward(model, &mut timeline, &[0], 0, Want::Last, &mut |_| Ok(()))?;
        }
        Ok(())
    }

    /// Brings matrices that one operation takes together to a device before they are used. Nothing for the CPU.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn bring_matrices(&self, together: &[&Matrix]) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Processor::Gpu(gpu) = self {
            return gpu.bring_matrices(together);
        }
        let _ = together;
        Ok(())
    }

    /// Brings some experts of a layer to a device before they are used. Nothing for the CPU.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn bring(&self, of: Routed, experts: &[(u32, &Expert)]) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Processor::Gpu(gpu) = self {
            return gpu.bring(of, experts);
        }
        let _ = (of, experts);
        Ok(())
    }

    /// [`Backend::refine`].
    pub(super) fn refine(&self, refinement: &Refinement) -> Result<()> {
        match self {
            Processor::Cpu(cpu) => cpu.refine(refinement),
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => gpu.refine(refinement),
        }
    }

    /// Memory for a timeline.
    pub(super) fn timeline(&self, model: &Model, context: usize, chunk: usize) -> Result<Timeline> {
        Ok(match self {
            Processor::Cpu(cpu) => Timeline::Cpu(Box::new(State::new(&**cpu, model, context, chunk)?)),
            #[cfg(feature = "gpu")]
            Processor::Gpu(gpu) => Timeline::Gpu(Box::new(State::new(&**gpu, model, context, chunk)?)),
        })
    }

    /// [`Model::forward`] on a timeline of this processor.
    pub(super) fn forward(
        &self,
        model: &Model,
        timeline: &mut Timeline,
        tokens: &[u32],
        pos: usize,
        want: Want,
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        match (self, timeline) {
            (Processor::Cpu(cpu), Timeline::Cpu(state)) => {
                model.forward(&**cpu, state, tokens, pos, want, hear)
            }
            #[cfg(feature = "gpu")]
            (Processor::Gpu(gpu), Timeline::Gpu(state)) => {
                model.forward(&**gpu, state, tokens, pos, want, hear)
            }
            _ => unreachable!("a timeline belongs to the processor that made it"),
        }
    }
}

impl Timeline {
    /// Positions that the cache holds.
    pub(super) fn capacity(&self) -> usize {
        match self {
            Timeline::Cpu(state) => state.capacity(),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.capacity(),
            Timeline::Gone { capacity, .. } => *capacity,
        }
    }

    /// Tokens that one call may take.
    pub(super) fn chunk(&self) -> usize {
        match self {
            Timeline::Cpu(state) => state.chunk(),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.chunk(),
            Timeline::Gone { chunk, .. } => *chunk,
        }
    }

    /// [`State::rewind`].
    pub(super) fn rewind(&self, to: usize) -> usize {
        match self {
            Timeline::Cpu(state) => state.rewind(to),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.rewind(to),
            Timeline::Gone { .. } => 0,
        }
    }

    /// [`State::earliest`].
    pub(super) fn earliest(&self) -> usize {
        match self {
            Timeline::Cpu(state) => state.earliest(),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.earliest(),
            Timeline::Gone { .. } => 0,
        }
    }

    /// [`State::places`].
    pub(super) fn places(&self, layer: usize) -> usize {
        match self {
            Timeline::Cpu(state) => state.places(layer),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.places(layer),
            Timeline::Gone { .. } => 0,
        }
    }

    /// [`State::restored`].
    pub(super) fn restored(&mut self, held: usize, earliest: usize) {
        match self {
            Timeline::Cpu(state) => state.restored(held, earliest),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.restored(held, earliest),
            Timeline::Gone { .. } => {}
        }
    }

    /// What the last call with [`Want::Best`] found.
    pub(super) fn likeliest(&self) -> &[(u32, f32)] {
        match self {
            Timeline::Cpu(state) => state.likeliest(),
            #[cfg(feature = "gpu")]
            Timeline::Gpu(state) => state.likeliest(),
            Timeline::Gone { .. } => &[],
        }
    }

    /// Whether a device holds it.
    pub(super) fn is_gpu(&self) -> bool {
        !matches!(self, Timeline::Cpu(_) | Timeline::Gone { .. })
    }
}
