//! The options for opening a model.

use crate::convert::Purpose;
use crate::kernels::GpuVariants;
use crate::kernels::cpu::Isa;
use crate::model::routing::Routing;
use crate::quant::Level;
use crate::sched::{Order, Precision, Verify};
use crate::store;
use crate::telemetry::Trace;
use std::path::PathBuf;
use std::sync::Arc;

/// Selects a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// A hardware GPU if there is one, else the CPU.
    Auto,
    /// A GPU, even a software one: the one with this index in `kernels::gpu::adapters`, or the first usable
    /// one.
    Gpu(Option<usize>),
}

/// Options for opening a model.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The processor; by default the CPU.
    pub backend: BackendChoice,
    /// Threads, including the caller's; 0 for one per core.
    pub threads: usize,
    /// The level of experts if all are resident; by default the highest stored. The same as `precision` with
    /// [`Precision::Exact`].
    pub level: Option<Level>,
    /// The instruction set; by default the best that the CPU supports.
    #[doc(hidden)]
    pub isa: Option<Isa>,
    /// The memory budget in bytes, for this engine and one session together. If the model needs more, its
    /// experts are streamed. Without a budget, everything is resident.
    pub memory: Option<u64>,
    /// The precision of experts. By default, the highest stored level if everything fits, else adaptive.
    pub precision: Option<Precision>,
    /// Positions of the KV cache that the budget must hold; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// The prefill chunk that the budget must hold, in tokens. By default 512; if experts are streamed, what
    /// the budget allows, at most 2048.
    pub chunk: Option<usize>,
    /// Changes to the router's choices.
    pub routing: Routing,
    /// How experts are streamed.
    pub streaming: StreamingOptions,
    /// A folder for compiled GPU kernels. The engine reads it when it opens, and writes it at the end of a
    /// generation that compiled new ones. The next start is then faster if the driver has no such cache. By
    /// default none.
    pub pipelines: Option<PathBuf>,
    /// The kernel variants that a GPU may use.
    #[doc(hidden)]
    pub gpu_variants: GpuVariants,
    /// Measures the time of every GPU kernel ([`crate::telemetry::GpuStats::kernels`]). The GPU waits after
    /// each. Use this to compare kernels, not to measure the total time.
    #[doc(hidden)]
    pub gpu_clock: bool,
    /// For tests: the most bytes that a GPU kernel may read from one buffer, if fewer than the adapter
    /// allows.
    #[doc(hidden)]
    pub gpu_binding_bytes: Option<u64>,
    /// A folder for converted models. Each foreign model is converted once and reused. By default none, and
    /// only Dollop files can be opened.
    pub cache: Option<PathBuf>,
    /// The purpose of a conversion. A model that does not suit it is rejected before the conversion starts.
    pub purpose: Purpose,
    /// The CPU cores to run on, by the system's numbers; by default all. Linux and Android only.
    pub cores: Option<Vec<usize>>,
}

impl EngineOptions {
    /// Sets the processor.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Sets the number of threads, including the caller's; 0 for one per core.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the memory budget in bytes, for the engine and one session together.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Sets the precision of experts.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// Sets the positions of the KV cache that the budget must hold.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sets the folder for converted models.
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }
}

/// How experts are streamed.
#[derive(Clone)]
#[non_exhaustive]
pub struct StreamingOptions {
    /// Streams experts even if all fit the budget, so that memory can be given back later
    /// ([`Engine::set_memory`](super::Engine::set_memory)).
    pub always: bool,
    /// Reads in flight; by default the number that measures best when the file is opened.
    pub lanes: Option<usize>,
    /// The method of reading; by default the one that measures faster when the file is opened.
    #[doc(hidden)]
    pub reads: store::Reads,
    /// Computes while reads are in flight.
    pub overlap: bool,
    /// When the checksums of read planes are verified.
    #[doc(hidden)]
    pub verify: Verify,
    /// The order in which refinements are read.
    #[doc(hidden)]
    pub order: Order,
    /// Bytes of refinements per layer and token, instead of a price. For comparisons.
    #[doc(hidden)]
    pub refinement_bytes: Option<usize>,
    /// The number of tokens after which an expert's heat has halved.
    #[doc(hidden)]
    pub half_life: f32,
    /// Records a trace of which thread did what, and when.
    #[doc(hidden)]
    pub trace: Option<Arc<Trace>>,
    /// Replaces the file's storage. For tests that inject faults.
    #[doc(hidden)]
    pub storage: Option<Arc<dyn store::Storage>>,
}

impl Default for StreamingOptions {
    fn default() -> Self {
        let o = crate::sched::StreamOptions::default();
        StreamingOptions {
            always: false,
            lanes: None,
            reads: store::Reads::default(),
            overlap: o.overlap,
            verify: o.verify,
            order: o.order,
            refinement_bytes: None,
            half_life: o.half_life,
            trace: None,
            storage: None,
        }
    }
}
