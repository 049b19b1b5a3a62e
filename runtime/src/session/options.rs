//! What a program may say of how a model is opened.

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

/// The processor that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU where there is one that is no software, else the CPU.
    Auto,
    /// A GPU, software or not: this one of `kernels::gpu::adapters`, or the first usable one.
    Gpu(Option<usize>),
}

/// How a model is opened.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct EngineOptions {
    /// What to compute on; by default the CPU.
    pub backend: BackendChoice,
    /// Threads, the caller's included; 0 for one per core.
    pub threads: usize,
    /// Level at which experts are read where they are all resident; by default the highest stored. The same as
    /// `precision` with [`Precision::Exact`].
    pub level: Option<Level>,
    /// Instruction set; by default the best that the machine has.
    #[doc(hidden)]
    pub isa: Option<Isa>,
    /// Bytes of memory that this engine and one session of it may take together. Where the model needs more, its experts
    /// are streamed. Without one, everything is resident.
    pub memory: Option<u64>,
    /// Precision of experts. By default the highest level stored where everything fits, else adaptive.
    pub precision: Option<Precision>,
    /// Positions of the KV cache that the budget is planned for; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// Prefill chunk that the budget is planned for; by default 512, and where experts are streamed what the budget allows, at
    /// most 2048.
    pub chunk: Option<usize>,
    /// Departures from the router's choice.
    pub routing: Routing,
    /// How streaming works.
    pub streaming: StreamingOptions,
    /// A folder where a GPU's compiled kernels are looked for, and written by
    /// [`Engine::save_pipelines`](super::Engine::save_pipelines): opening is then quicker where the driver keeps none of its own.
    /// By default none.
    pub pipelines: Option<PathBuf>,
    /// Variants of its kernels that a GPU may use.
    #[doc(hidden)]
    pub gpu_variants: GpuVariants,
    /// Time every kernel of a GPU ([`crate::telemetry::GpuStats::kernels`]). Everything waits for it: for finding out what
    /// takes long, and not how long all of it does.
    #[doc(hidden)]
    pub gpu_clock: bool,
    /// For tests: bytes that a GPU's kernels may read from one buffer, where they are to be fewer than the adapter allows.
    #[doc(hidden)]
    pub gpu_binding_bytes: Option<u64>,
    /// A folder for conversions of foreign models, made once and found there from then on; by default none, and only Dollop files
    /// open.
    pub cache: Option<PathBuf>,
    /// What a foreign model is converted for: one that cannot do it is refused before that takes its time.
    pub purpose: Purpose,
    /// Cores to run on, by the system's numbers; by default all. Linux and Android only.
    pub cores: Option<Vec<usize>>,
}

impl EngineOptions {
    /// What to compute on.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Threads, the caller's included; 0 for one per core.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Bytes that the engine and one session may take together.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Precision of experts.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// Positions of the KV cache that the budget is planned for.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// A folder for conversions of foreign models.
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }
}

/// How experts are streamed, where they are.
#[derive(Clone)]
#[non_exhaustive]
pub struct StreamingOptions {
    /// Stream experts although all of them would fit the budget, so that memory can be given back later
    /// ([`Engine::set_memory`](super::Engine::set_memory)).
    pub always: bool,
    /// Reads at a time; by default as many as prove best when the file is opened.
    pub lanes: Option<usize>,
    /// Who reads; by default whoever proves faster when the file is opened.
    #[doc(hidden)]
    pub reads: store::Reads,
    /// Compute while reads are under way.
    pub overlap: bool,
    /// When checksums of what is read are compared.
    #[doc(hidden)]
    pub verify: Verify,
    /// In which order refinements are bought.
    #[doc(hidden)]
    pub order: Order,
    /// Bytes that a layer of a token may read for refinements, in place of a price: for comparisons.
    #[doc(hidden)]
    pub refinement_bytes: Option<usize>,
    /// Tokens after which half of an expert's heat is gone.
    #[doc(hidden)]
    pub half_life: f32,
    /// Records who did what when.
    #[doc(hidden)]
    pub trace: Option<Arc<Trace>>,
    /// Reads through this in place of the file itself: for tests that inject faults.
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
