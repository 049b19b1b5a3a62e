//! A loaded model: weights, tokenizer, template, processor. Shared by all its sessions.

use super::info::ModelInfo;
use super::parts::Parts;
use super::plan::{MemoryPlan, RefinementPlan};
use super::processor::{self, Adapter, BackendChoice, Processor};
use super::processors::{Computing, Processors};
use super::streaming;
use super::tensors::Reference;
use super::tokens::SpecialTokens;
use crate::convert::source::Source;
use crate::error::{Error, Result};
use crate::format::dollop;
use crate::kernels::cpu::Isa;
use crate::kernels::{GpuVariants, Observer};
use crate::model::embedding::Embedding;
use crate::model::file::NestedFile;
use crate::model::routing::Routing;
use crate::model::{Model, Tensors};
use crate::quant::{Level, Matrix};
use crate::sched::{Order, Precision, Refiner, Streamer, Verify};
use crate::store;
use crate::telemetry::{GpuFault, GpuStats, StreamStats, Trace};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How a model is opened.
#[derive(Clone, Default)]
pub struct EngineOptions {
    /// What to compute on; by default the CPU.
    pub backend: BackendChoice,
    /// Threads, the caller's included; 0 for one per core.
    pub threads: usize,
    /// Level at which experts are read where they are all resident; by default the highest stored. The same as
    /// `precision` with [`Precision::Exact`].
    pub level: Option<Level>,
    /// Instruction set; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// Bytes of memory that this engine and one session of it may take together. Where the model needs more, its experts
    /// are streamed. Without one, everything is resident.
    pub memory: Option<u64>,
    /// Precision of experts. By default the highest level stored where everything fits, else adaptive.
    pub precision: Option<Precision>,
    /// Positions of the KV cache that the budget is planned for; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// Prefill chunk that the budget is planned for; by default what the budget allows, at most 512.
    pub chunk: Option<usize>,
    /// Departures from the router's choice.
    pub routing: Routing,
    /// How streaming works.
    pub streaming: StreamingOptions,
    /// A folder where a GPU's compiled kernels are looked for, and written by [`Engine::save_pipelines`]: opening is then
    /// quicker where the driver keeps none of its own. By default none.
    pub pipelines: Option<PathBuf>,
    /// Variants of its kernels that a GPU may use.
    pub gpu_variants: GpuVariants,
    /// Time every kernel of a GPU ([`crate::telemetry::GpuStats::kernels`]). Everything waits for it: for finding out what
    /// takes long, and not how long all of it does.
    pub gpu_clock: bool,
    /// For tests: bytes that a GPU's kernels may read from one buffer, where they are to be fewer than the adapter allows.
    #[doc(hidden)]
    pub gpu_binding_bytes: Option<u64>,
    /// Cores to run on, by the system's numbers; by default all. Linux and Android only.
    pub cores: Option<Vec<usize>>,
}

/// How experts are streamed, where they are.
#[derive(Clone)]
pub struct StreamingOptions {
    /// Reads at a time; by default as many as prove best when the file is opened.
    pub lanes: Option<usize>,
    /// Who reads; by default whoever proves faster when the file is opened.
    pub reads: store::Reads,
    /// Compute while reads are under way.
    pub overlap: bool,
    /// When checksums of what is read are compared.
    pub verify: Verify,
    /// In which order refinements are bought.
    pub order: Order,
    /// Bytes that a layer of a token may read for refinements, in place of a price: for comparisons.
    pub refinement_bytes: Option<usize>,
    /// Tokens after which half of an expert's heat is gone.
    pub half_life: f32,
    /// Records who did what when.
    pub trace: Option<Arc<Trace>>,
    /// Reads through this in place of the file itself: for tests that inject faults.
    pub storage: Option<Arc<dyn store::Storage>>,
}

impl Default for StreamingOptions {
    fn default() -> Self {
        let o = crate::sched::StreamOptions::default();
        StreamingOptions {
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

pub(super) struct Inner {
    pub(super) processors: Processors,
    /// Why the CPU computes, where a GPU would have been preferred.
    pub(super) note: Option<String>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: Option<String>,
    pub(super) special: SpecialTokens,
    pub(super) served: Served,
}

/// Who provides experts.
pub(super) enum Served {
    /// All are in memory for good.
    Resident,
    /// All are on a device, some with a plane more.
    Refined(Arc<Refiner>),
    /// They are read when they are wanted.
    Streamed(Arc<Streamer>),
}

/// A loaded model. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Opens a Dollop file. Where everything fits the budget, or there is none, weights are read from the mapping and
    /// nothing is loaded; otherwise the always-used weights are loaded and the experts streamed, and on a CPU rows of an embedding
    /// that is not the output head as well.
    ///
    /// # Errors
    /// `Malformed`, `Unsupported` or `Io`, naming the file; `Budget` for a budget that cannot work; `Invalid` for
    /// options that contradict each other; `Device` where a GPU is demanded and cannot be had.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine> {
        let file = map(path)?;
        let inner = |adapter| {
            let parts = Parts::new(&file, options)?;
            let tables = streaming::tables(&file, parts.layers())?;
            let plan = parts.plan(options, adapter, &tables)?;
            if plan.streaming {
                let streams = streaming::open(path, &file, tables, &parts, &plan, options)?;
                let inner = parts.streamed(&file, options, adapter, plan, streams)?;
                if adapter.is_some() {
                    upload(&inner.processors.first)?;
                }
                Ok(inner)
            } else {
                let refine = |all, refinements: RefinementPlan, level| {
                    let granule = streaming::granule(&file);
                    streaming::refiner(path, granule, tables, all, refinements, level, options)
                };
                let inner = parts.resident(&file, options, adapter, plan, refine)?;
                let first = &inner.processors.first;
                first.processor.warm_up(&first.model)?;
                if adapter.is_some() {
                    release(&first.model);
                }
                if let Served::Refined(refiner) = &inner.served {
                    refiner.start(&mut |refinement| first.processor.refine(refinement))?;
                }
                Ok(inner)
            }
        };
        Engine::on(options, inner).map_err(|e| e.at(path))
    }

    /// What [`Engine::open`] would do with the memory, without loading anything.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn plan(path: &Path, options: &EngineOptions) -> Result<MemoryPlan> {
        let file = map(path)?;
        let plan = |adapter| {
            let parts = Parts::new(&file, options)?;
            parts.plan(options, adapter, &streaming::tables(&file, parts.layers())?)
        };
        Ok(processor::choose(options.backend, plan).map_err(|e| e.at(path))?.0)
    }

    /// Opens a foreign model unquantized, in f32, to measure against. Takes four bytes a weight.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_reference(path: &Path, options: &EngineOptions) -> Result<Engine> {
        let source = Source::open(path)?;
        if dollop::is_dollop(source.metadata()) {
            let what = "the reference is computed from unquantized weights; name the source model, not its Dollop file";
            return Err(Error::unsupported(what).at(path));
        }
        Engine::of_tensors(&Reference(source), path, options)
    }

    /// An engine of whatever has tensors, all of them in memory.
    pub(super) fn of_tensors(tensors: &dyn Tensors, path: &Path, options: &EngineOptions) -> Result<Engine> {
        let options = EngineOptions { memory: None, ..options.clone() };
        let open = |adapter| {
            let parts = Parts::new(tensors, &options)?;
            let plan = parts.plan(&options, adapter, &[])?;
            let refine = |_, _, _| unreachable!("without a budget nothing is lowered");
            let inner = parts.resident(tensors, &options, adapter, plan, refine)?;
            let first = &inner.processors.first;
            first.processor.warm_up(&first.model)?;
            Ok(inner)
        };
        Engine::on(&options, open).map_err(|e| e.at(path))
    }

    /// An engine on the processor that the options ask for.
    fn on(options: &EngineOptions, open: impl Fn(Option<Adapter>) -> Result<Inner>) -> Result<Engine> {
        let (mut inner, note) = processor::choose(options.backend, open)?;
        inner.note = note;
        Ok(Engine(Arc::new(inner)))
    }

    /// Why the CPU computes, in one line, where [`BackendChoice::Auto`] would have preferred a GPU or the GPU was lost.
    pub fn note(&self) -> Option<&str> {
        self.lost().or(self.0.note.as_deref())
    }

    /// What became of the GPU, in one line, where it failed after the engine was opened: was lost, ran out of memory or
    /// refused what was asked of it. Sessions then go on on the CPU, if the budget allows.
    pub fn lost(&self) -> Option<&str> {
        self.processors().lost()
    }

    /// Writes the kernels that a GPU's driver has compiled to the folder that the options named, for the next time. `false`
    /// where there is nothing to write: no GPU, no folder, an adapter that keeps nothing, or nothing new.
    ///
    /// # Errors
    /// `Io`.
    pub fn save_pipelines(&self) -> Result<bool> {
        self.processor().save_pipelines()
    }

    /// For tests: the GPU fails as `fault` says after so many more submissions. Nothing where there is none.
    #[doc(hidden)]
    pub fn lose_gpu(&self, submissions: u64, fault: GpuFault) {
        self.processors().first.processor.lose_after(submissions, fault);
    }

    /// Shows `observer` the inputs of every product from now on.
    ///
    /// # Errors
    /// `Device` where a GPU computes.
    pub(super) fn observe(&self, observer: Arc<dyn Observer>) -> Result<()> {
        self.processor().cpu()?.observe(observer);
        Ok(())
    }

    pub(super) fn processors(&self) -> &Processors {
        &self.0.processors
    }

    fn now(&self) -> &Computing {
        self.processors().now()
    }

    pub(super) fn model(&self) -> &Model {
        &self.now().model
    }

    pub(super) fn processor(&self) -> &Processor {
        &self.now().processor
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.processor().threads()
    }

    /// What the GPU was given to do since the engine was opened; `None` where it computes on the CPU.
    pub fn gpu_stats(&self) -> Option<GpuStats> {
        self.processor().gpu_stats()
    }

    /// Bytes per second that this engine's threads read from memory when they do nothing else: the ceiling of decoding.
    /// The best of five passes over a buffer of `bytes`, which should be larger than the caches.
    ///
    /// # Errors
    /// `Invalid` where there is no memory for the buffer, `Device` where no threads compute.
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64> {
        let cpu = self.processor().cpu()?;
        let len = bytes / 8;
        let mut words = Vec::new();
        words.try_reserve_exact(len).map_err(|_| Error::Invalid("no memory for the read test".into()))?;
        words.extend(0..len as u64);
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            std::hint::black_box(cpu.read(&words));
            best = best.max((len * 8) as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// What the memory is spent on.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.now().plan
    }

    /// What streaming has done since the engine was opened; `None` where everything is resident for good.
    pub fn stream_stats(&self) -> Option<StreamStats> {
        match &self.0.served {
            Served::Resident => None,
            Served::Refined(refiner) => Some(refiner.stats()),
            Served::Streamed(streamer) => Some(self.with_rows(streamer.stats())),
        }
    }

    /// Adds what reading rows of the embedding took.
    fn with_rows(&self, mut stats: StreamStats) -> StreamStats {
        if let Embedding::Read(rows) = &self.model().weights.embed {
            let reads = rows.reads();
            stats.bytes_embedding = reads.bytes;
            stats.wait_ns += reads.wait_ns;
            stats.retries += reads.retries;
        }
        stats
    }

    /// The streamer, where experts are streamed.
    pub fn streamer(&self) -> Option<&Streamer> {
        match &self.0.served {
            Served::Streamed(streamer) => Some(streamer),
            Served::Resident | Served::Refined(_) => None,
        }
    }

    /// Who gives some experts a plane more, where that is done.
    pub fn refiner(&self) -> Option<&Refiner> {
        match &self.0.served {
            Served::Refined(refiner) => Some(refiner),
            Served::Resident | Served::Streamed(_) => None,
        }
    }

    /// Choices of the router that were dropped, and that went to another expert, since the engine was opened.
    pub fn routing_departures(&self) -> (u64, u64) {
        let counters = &self.model().counters;
        (counters.dropped.load(Ordering::Relaxed), counters.redirected.load(Ordering::Relaxed))
    }

    /// The model in numbers.
    pub fn info(&self) -> &ModelInfo {
        &self.now().info
    }

    /// Ids with a meaning.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `Unsupported` for a model without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(|| {
            Error::unsupported(
                "the model has no tokenizer; put its tokenizer.json beside it and convert it again",
            )
        })
    }

    /// The chat template, parsed.
    ///
    /// # Errors
    /// `Unsupported` for a model without one, `Template` for one that does not parse.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        let source = self.0.template.as_deref().ok_or_else(|| {
            Error::unsupported("the model has no chat template, so it cannot chat; continue plain text with `dollop run --raw`")
        })?;
        ChatTemplate::parse(source)
    }

    /// The ids of a text that is no chat: with the tokens that the model wants at its beginning.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, true)
    }
}

/// Brings the always-used weights to a device, and lets go of the mapping's pages as they get there: beside experts that are
/// streamed there is no memory to hold anything twice. No token is needed for it, which would read experts.
fn upload(first: &Computing) -> Result<()> {
    for together in first.model.weights.matrices() {
        first.processor.bring_matrices(&together)?;
        together.into_iter().for_each(release_matrix);
    }
    Ok(())
}

/// Lets go of the mapping's pages once a device has a copy: on one memory they would be held twice.
fn release(model: &Model) {
    for layer in 0..model.config.layers {
        let experts = model.experts.all(layer).unwrap_or_default();
        experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]).for_each(release_matrix);
    }
    model.weights.matrices().into_iter().flatten().for_each(release_matrix);
}

fn release_matrix(m: &Matrix) {
    if let Matrix::Nested(n) = m {
        n.planes().iter().for_each(|plane| store::release(plane));
    }
}

fn map(path: &Path) -> Result<NestedFile> {
    if path.is_dir() {
        let what = "this is a folder; convert the model in it first (`dollop convert`)";
        return Err(Error::unsupported(what).at(path));
    }
    NestedFile::new(store::map(path)?).map_err(|e| e.at(path))
}
