//! A model on its way from a file to an engine: weights as views of the file, a plan, and then what the plan says.

use super::dense::{PADDING, copy_dense, dense_bytes, is_tied};
use super::engine::{Inner, Served};
use super::failover::{Computing, Fallback, Processors};
use super::info::{Manner, ModelInfo, rotated};
use super::options::EngineOptions;
use super::plan::{MemoryPlan, RefinementPlan, Request, Unheld};
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
use crate::model::weights::PER_LAYER_EMBEDDING;
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
    /// Highest level of the experts in the file; `None` where they are not nested or there are none.
    stored: Option<Level>,
    tied: bool,
    /// What reading rows of an embedding takes that is never held.
    row_bytes: u64,
}

/// What reads while a model runs.
pub(super) struct Streams {
    pub(super) streamer: Streamer,
    /// The embedding's rows, where it is not held.
    pub(super) rows: Option<Arc<dyn Rows>>,
    /// Checksums of the always-used weights, where these are compared.
    pub(super) sums: DenseSums,
}

/// What a file says of texts. Read before weights and caches take their memory: reading a tokenizer takes several times what
/// it holds in the end.
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
    /// Weights as views.
    ///
    /// # Errors
    /// `Malformed` where the file contradicts its config; `Invalid` for options that contradict each other or the model.
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

    /// Reads experts at a level that is stored.
    fn cut(&mut self, level: Level) {
        for expert in self.experts.iter_mut().flatten() {
            for m in [&mut expert.gate, &mut expert.up, &mut expert.down] {
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

    /// The highest level that streamed experts have on a device, where all of them have room for it.
    pub(super) fn device_level(&self, options: &EngineOptions) -> Level {
        self.precision(options).place_level(self.stored.unwrap_or(Level::B8))
    }

    /// Leaves the embedding of inputs of layers in the file: a token needs one row of what is larger than all the rest.
    ///
    /// # Errors
    /// `Io`; `Malformed` where the file has no such matrix.
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

    /// The embedding.
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
    /// `Budget`; `Invalid` for a context or chunk that the model does not have.
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
            scratch: &|context, chunk| shape.scratch(context, chunk, threads),
            kv: &|context, chunk| shape.kv(context, chunk),
        })
    }

    /// What an embedding takes that need not be held where experts are streamed: the CPU looks rows up, and the head is another
    /// matrix. A device has its own copy, and no hand on the file.
    fn unheld(&self, gpu: bool) -> Unheld {
        match self.weights.embed.held() {
            Some(embed @ Matrix::Nested(n)) if !gpu && !self.tied => {
                Unheld { bytes: (embed.bytes() + PADDING) as u64, row_bytes: FileRows::memory(n) as u64 }
            }
            _ => Unheld::default(),
        }
    }

    fn ff_routed(&self) -> usize {
        self.experts.iter().flatten().map(|e| e.gate.rows()).next().unwrap_or(0)
    }

    /// An engine with everything in memory or mapped. Where some experts get a plane more, `refine` makes out of all of them
    /// who sees to it.
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
        // Where experts are stored at different levels, there is none that all have.
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

    /// An engine whose experts are streamed, and rows of the embedding where it is not held.
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
        // A device has its own copy, made once.
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
        // Unquantized weights are there to be measured against: their keys and values are not rounded either.
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

/// The exact level that the options ask for.
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
    experts.iter().flatten().filter_map(|e| match &e.gate {
        Matrix::Nested(n) => Some(n.level()),
        Matrix::F32 { .. } => None,
    })
}
