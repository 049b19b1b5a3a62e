//! Builds an engine from a file. Loads the weights as views of the file, makes a memory plan, and then loads
//! or streams what the plan says.

use super::dense::{PADDING, copy_dense, dense_bytes, is_tied};
use super::engine::{Inner, Served};
use super::failover::{Computing, Fallback, Processors};
use super::info::{Manner, ModelInfo, rotated};
use super::options::EngineOptions;
use super::plan::{MemoryPlan, RefinementPlan, Request, TokenWork, Unheld};
use super::processor::{self, Adapter, Needs};
use super::shape::Shape;
use super::timeline::DEFAULT_CONTEXT;
use crate::error::{Error, Result};
use crate::experts::{AllResident, Expert, ExpertSource, LayerExperts, Rows};
use crate::format::Metadata;
use crate::model::embedding::Embedding;
use crate::model::file::{DenseSums, NestedFile};
use crate::model::routing::RoutingCounters;
use crate::model::sampling;
use crate::model::tokens::{self, SpecialTokens};
use crate::model::weights::{Layer, PER_LAYER_EMBEDDING};
use crate::model::{Model, Spec, Tensors, Weights, weights::Ffn};
use crate::quant::{self, Level, Matrix};
use crate::sampler::Sampling;
use crate::sched::{DEFAULT_FLOOR, DEFAULT_QUALITY, FileRows, Precision, Refiner, Streamer};
use crate::store::{FileStorage, Place, Storage};
use crate::tokenizer::Tokenizer;
use std::sync::{Arc, Mutex};

pub(super) struct Parts {
    pub(super) spec: Spec,
    weights: Weights,
    experts: Vec<Vec<Expert>>,
    /// The highest level of experts in the file; `None` if they are not nested or there are none.
    stored: Option<Level>,
    tied: bool,
    /// Memory for reading rows of the per-layer input embedding, which is never held, in bytes.
    row_bytes: u64,
}

/// What reads from storage while the model runs.
pub(super) struct Streams {
    pub(super) streamer: Streamer,
    /// Reads the embedding's rows, if it is not in memory.
    pub(super) rows: Option<Arc<dyn Rows>>,
    /// Checksums of the always-used weights, if these are verified.
    pub(super) sums: DenseSums,
}

/// The text part of a file. We read it before weights and caches take their memory, because building a
/// tokenizer takes several times the memory that it needs afterwards.
struct Words {
    tokenizer: Option<Tokenizer>,
    special: SpecialTokens,
    template: Option<String>,
    sampling: Sampling,
}

impl Words {
    fn read(meta: &Metadata) -> Result<Words> {
        let tokenizer = tokens::tokenizer(meta)?;
        let special = tokens::special_tokens(meta, tokenizer.as_ref())?;
        let template = meta.str("tokenizer.chat_template")?.map(str::to_owned);
        Ok(Words { tokenizer, special, template, sampling: sampling::advice(meta).sampling })
    }
}

impl Parts {
    /// Loads the weights as views of the file.
    ///
    /// # Errors
    /// `Malformed` if the file contradicts its config; `Invalid` for options that contradict each other or
    /// the model.
    pub(super) fn new(tensors: &dyn Tensors, options: &EngineOptions) -> Result<Parts> {
        let mut spec = Spec::from_metadata(tensors.metadata())?;
        if let Some(router) = spec.router() {
            options.routing.check(&router)?;
            options.routing.top_k.into_iter().for_each(|top_k| spec.set_top_k(top_k));
        }
        let level = exact_level(options);
        if options.precision.is_some_and(|p| matches!(p, Precision::Exact(_))) && options.routing.is_lossy() {
            return Err(Error::Invalid(
                "exact precision excludes --experts-used, --skip-cold and --cache-prior: they change results"
                    .into(),
            ));
        }
        let (weights, experts) = Weights::load(&spec, tensors, None)?;
        let stored = level_of(&experts);
        let tied = is_tied(&weights);
        let mut parts = Parts { spec, weights, experts, stored, tied, row_bytes: 0 };
        if let (Some(level), Some(stored)) = (level, stored) {
            quant::check_level(level, stored)?;
            parts.cut(level);
        }
        Ok(parts)
    }

    /// Restricts all experts to a stored level.
    fn cut(&mut self, level: Level) {
        for expert in self.experts.iter_mut().flatten() {
            for m in expert.matrices_mut() {
                if let Matrix::Nested(n) = m {
                    *n = n.at(level.min(n.level())).expect("the level is stored");
                }
            }
        }
    }

    pub(super) fn layers(&self) -> usize {
        self.spec.layers.len()
    }

    /// The precision of streamed experts.
    pub(super) fn precision(&self, options: &EngineOptions) -> Precision {
        let stored = self.stored.unwrap_or(Level::B8);
        match (options.precision, options.level) {
            (Some(Precision::Adaptive { quality, floor }), _) => {
                Precision::Adaptive { quality, floor: floor.min(stored) }
            }
            (Some(exact), _) => exact,
            (None, Some(level)) => Precision::Exact(level),
            (None, None) => {
                Precision::Adaptive { quality: DEFAULT_QUALITY, floor: DEFAULT_FLOOR.min(stored) }
            }
        }
    }

    /// The highest level of streamed experts on a device. Every slot there has room for it.
    pub(super) fn device_level(&self, options: &EngineOptions) -> Level {
        self.precision(options).place_level(self.stored.unwrap_or(Level::B8))
    }

    /// Leaves the per-layer input embedding in the file. It is larger than all other weights together, and a
    /// token needs one row of it.
    ///
    /// # Errors
    /// `Io`; `Malformed` if the file has no such matrix.
    pub(super) fn read_inputs(
        &mut self,
        place: &Place,
        file: &NestedFile,
        options: &EngineOptions,
    ) -> Result<()> {
        let Some(inputs) = &mut self.weights.per_layer else { return Ok(()) };
        if let Embedding::Held(Matrix::Nested(embed)) = &inputs.embed {
            let storage: Arc<dyn Storage> = match &options.streaming.storage {
                Some(storage) => storage.clone(),
                None => Arc::new(FileStorage::open_scattered(place)?),
            };
            let offset = file.matrix_offset(PER_LAYER_EMBEDDING)?;
            self.row_bytes = FileRows::memory(embed) as u64;
            let rows = FileRows::new(place.name(), storage, offset, embed, options.streaming.trace.clone());
            inputs.embed = Embedding::Read(Arc::new(rows));
        }
        Ok(())
    }

    /// The embedding of tokens.
    pub(super) fn embedding(&self) -> &Embedding {
        &self.weights.embed
    }

    fn manner(&self, options: &EngineOptions, level: Option<Level>) -> Manner {
        let dense = match self.weights.embed.held() {
            Some(Matrix::Nested(n)) => Some(n.level()),
            _ => None,
        };
        Manner { precision: self.precision(options), level, dense }
    }

    fn info(&self, manner: &Manner, plan: &MemoryPlan) -> ModelInfo {
        ModelInfo::new(&self.spec, &self.weights, &self.experts, self.tied, manner.described(plan))
    }

    /// # Errors
    /// `Budget`; `Invalid` for a context or chunk that the model does not support.
    pub(super) fn plan(
        &self,
        options: &EngineOptions,
        adapter: Option<Adapter>,
        tables: &[Option<LayerExperts>],
    ) -> Result<MemoryPlan> {
        processor::supports(adapter, &self.spec.uses())?;
        let limit = self.spec.context;
        let context = options.context.unwrap_or(limit.min(DEFAULT_CONTEXT));
        super::timeline::check_context(context, limit)?;
        let gpu = adapter.is_some();
        let shape = Shape::new(&self.spec, &self.weights, (self.ff_routed(), rotated(&self.experts)), gpu);
        let threads = processor::most_threads(options.threads, options.cores.as_deref());
        let stored = self.stored.unwrap_or(Level::B8);
        MemoryPlan::new(&Request {
            vocab: self.weights.vocab(),
            dense_bytes: dense_bytes(&self.weights, gpu) + self.row_bytes,
            embedding: self.unheld(gpu),
            gpu,
            device_level: self.device_level(options),
            tables,
            budget: options.memory,
            always_streamed: options.streaming.always,
            context,
            chunk: options.chunk,
            whole: exact_level(options).unwrap_or(stored),
            may_lower: gpu && exact_level(options).is_none(),
            floor: self.precision(options).floor(),
            top_k: self.spec.router().map_or(0, |r| r.top_k),
            token: self.token(),
            scratch: &|context, chunk| shape.scratch(context, chunk, threads),
            kv: &|context, chunk| shape.kv(context, chunk),
        })
    }

    /// What one token passes through. Of embeddings it needs one row.
    fn token(&self) -> TokenWork {
        let router = self.spec.router();
        let mut token = TokenWork {
            layers: self.weights.layers.len(),
            routed_layers: self.weights.layers.iter().filter(|l| matches!(l.ffn, Ffn::Moe(_))).count(),
            experts: router.map_or(0, |r| r.experts),
            experts_used: router.map_or(0, |r| r.top_k),
            dense: Vec::new(),
        };
        self.weights.layers.iter().flat_map(Layer::matrices).flatten().for_each(|m| token.add(m));
        self.weights.per_layer.iter().for_each(|of| token.add(&of.proj));
        token.add(&self.weights.head);
        token
    }

    /// The size of the embedding, if it can stay in the file while experts are streamed. That needs the CPU,
    /// which reads single rows, and an output head that is another matrix. A device has its own copy and no
    /// access to the file.
    fn unheld(&self, gpu: bool) -> Unheld {
        match self.weights.embed.held() {
            Some(embed @ Matrix::Nested(n)) if !gpu && !self.tied => {
                Unheld { bytes: (embed.bytes() + PADDING) as u64, row_bytes: FileRows::memory(n) as u64 }
            }
            _ => Unheld::default(),
        }
    }

    fn ff_routed(&self) -> usize {
        self.experts.iter().flatten().map(|e| e.up.rows()).next().unwrap_or(0)
    }

    /// Builds an engine whose weights are all in memory or mapped. If some experts get an extra plane,
    /// `refine` creates the refiner from all experts.
    pub(super) fn resident(
        mut self,
        tensors: &dyn Tensors,
        options: &EngineOptions,
        adapter: Option<Adapter>,
        plan: MemoryPlan,
        refine: impl FnOnce(AllResident, RefinementPlan, Level) -> Result<Refiner>,
    ) -> Result<Inner> {
        plan.lowered_level().into_iter().for_each(|level| self.cut(level));
        let words = Words::read(tensors.metadata())?;
        let most = level_of(&self.experts);
        let manner = self.manner(options, most);
        // The level of all experts; `None` if they are stored at different levels.
        let level = most.filter(|level| levels_of(&self.experts).all(|l| l == *level));
        let info = self.info(&manner, &plan);
        let all = AllResident::new(std::mem::take(&mut self.experts), level);
        let (source, served): (Arc<dyn ExpertSource>, Served) = match plan.refinements.zip(level) {
            Some((refinements, level)) => {
                let refiner = Arc::new(refine(all, refinements, level)?);
                (refiner.clone(), Served::Refined(refiner))
            }
            None => (Arc::new(all), Served::Resident),
        };
        let fallback = Fallback { manner, least_cache: 0, sums: DenseSums::default() };
        self.assemble(words, options, adapter, plan, info, source, served, fallback)
    }

    /// Builds an engine that streams experts, and the embedding's rows if the plan leaves the embedding in
    /// the file.
    pub(super) fn streamed(
        mut self,
        tensors: &dyn Tensors,
        options: &EngineOptions,
        adapter: Option<Adapter>,
        plan: MemoryPlan,
        streams: Streams,
    ) -> Result<Inner> {
        let words = Words::read(tensors.metadata())?;
        let manner = self.manner(options, None);
        let info = self.info(&manner, &plan);
        self.experts = Vec::new();
        let Streams { streamer, rows, sums } = streams;
        assert_eq!(
            rows.is_some(),
            plan.unheld_embedding_bytes > 0,
            "what the plan does not count is not held"
        );
        if let Some(rows) = rows {
            self.weights.embed = Embedding::Read(rows);
        }
        // A device makes its own copy.
        if adapter.is_none() {
            copy_dense(&mut self.weights, self.tied, &sums)?;
        }
        let streamer = Arc::new(streamer);
        let source = streamer.clone();
        let fallback = Fallback { manner, least_cache: streamer.least_host_bytes(), sums };
        self.assemble(words, options, adapter, plan, info, source, Served::Streamed(streamer), fallback)
    }

    #[allow(clippy::too_many_arguments)]
    fn assemble(
        self,
        words: Words,
        options: &EngineOptions,
        adapter: Option<Adapter>,
        plan: MemoryPlan,
        mut info: ModelInfo,
        experts: Arc<dyn ExpertSource>,
        served: Served,
        fallback: Fallback,
    ) -> Result<Inner> {
        // Unquantized weights are a reference for measurements, so their KV cache is not rounded, either.
        let kv_single = self.weights.are_single();
        let needs = Needs {
            kv_single,
            routed_layers: self.weights.layers.iter().filter(|l| matches!(l.ffn, Ffn::Moe(_))).count(),
            level: match plan.streaming {
                true => self.device_level(options),
                false => plan.lowered_level().or(exact_level(options)).or(self.stored).unwrap_or(Level::B8),
            },
            expert_bytes: plan.streaming.then_some(plan.expert_bytes),
            refinements: plan.refinements.map_or(0, |r| r.slots),
        };
        let processor = processor::open(adapter, options, &needs)?;
        info.backend = processor.name();
        let model = Model {
            spec: self.spec,
            weights: self.weights,
            experts,
            routing: options.routing,
            counters: Arc::new(RoutingCounters::default()),
        };
        let budget = Mutex::new(plan.budget);
        let first = Computing::new(model, processor, info, plan);
        let processors = Processors::new(first, processor::cpu_options(options, kv_single), fallback);
        let Words { tokenizer, special, template, sampling } = words;
        let (breakers, words) = (Mutex::default(), Mutex::default());
        let (note, file) = (None, None);
        Ok(Inner {
            processors,
            note,
            tokenizer,
            template,
            special,
            sampling,
            breakers,
            words,
            served,
            budget,
            file,
        })
    }
}

/// The exact level that the options set.
fn exact_level(options: &EngineOptions) -> Option<Level> {
    match options.precision {
        Some(Precision::Exact(level)) => Some(level),
        Some(Precision::Adaptive { .. }) => None,
        None => options.level,
    }
}

/// The highest level of any expert.
fn level_of(experts: &[Vec<Expert>]) -> Option<Level> {
    levels_of(experts).max()
}

fn levels_of(experts: &[Vec<Expert>]) -> impl Iterator<Item = Level> {
    experts.iter().flatten().filter_map(|e| match &e.up {
        Matrix::Nested(n) => Some(n.level()),
        Matrix::F32 { .. } => None,
    })
}
