//! The engine: a loaded model with its weights, tokenizer, template and processor. All its sessions share it.
//!
//! This file has the engine's queries; `prepare` and `open` create one.

mod open;
mod prepare;

pub(super) use open::release_experts;

use super::failover::{Computing, Processors};
use super::info::ModelInfo;
use super::processor::Processor;
use super::saved::Identity;
use crate::error::{Error, Result};
use crate::experts::RowReads;
use crate::grammar::{Constraint, Words};
#[cfg(doc)]
use crate::kernels::MANY;
use crate::kernels::Observer;
use crate::kernels::cpu::CpuBackend;
use crate::model::Model;
use crate::model::embedding::Embedding;
use crate::model::routing::Routing;
use crate::model::tokens::{self, SpecialTokens};
use crate::sampler::{Breakers, Sampler, Sampling};
use crate::sched::{Refiner, Streamer};
use crate::telemetry::{GpuFault, GpuStats, StreamStats};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::tools::Format;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct Inner {
    pub(super) processors: Processors,
    /// Why the CPU computes, if a GPU was preferred.
    pub(super) note: Option<String>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: Option<String>,
    pub(super) special: SpecialTokens,
    pub(super) sampling: Sampling,
    /// The DRY sequence breakers of the last sampler: their texts, and the tokens that contain them.
    pub(super) breakers: Mutex<Option<(Vec<String>, Breakers)>>,
    /// The vocabulary for grammars, built at first use.
    pub(super) words: Mutex<Option<Arc<Words>>>,
    pub(super) served: Served,
    /// The current memory budget in bytes.
    pub(super) budget: Mutex<Option<u64>>,
    /// Identifies the model in saved sessions: the checksums of the file's header and of its weights'
    /// checksums. `None` if the model was not read from a Dollop file.
    pub(super) file: Option<[u32; 2]>,
}

impl Inner {
    /// Writes newly compiled GPU kernels to the folder in the options.
    pub(super) fn keep_pipelines(&self) {
        let gpu = self.processors.now().processor.accelerator();
        if let Some(Err(e)) = gpu.map(|gpu| gpu.save_pipelines()) {
            log::warn!("the GPU's compiled kernels were not saved: {e}");
        }
    }
}

impl Drop for Inner {
    /// Not every use ends a generation: `logits`, for example.
    fn drop(&mut self) {
        self.keep_pipelines();
    }
}

/// How the engine holds its experts.
pub(super) enum Served {
    /// All experts stay in memory.
    Resident,
    /// All experts are on a device, some of them with one extra plane.
    Refined(Arc<Refiner>),
    /// Experts are read from storage on demand.
    Streamed(Arc<Streamer>),
}

/// A loaded model. Clones are cheap and share it, and all threads may use it.
#[derive(Clone)]
pub struct Engine(pub(super) Arc<Inner>);

impl Engine {
    /// Why the CPU computes, in one line, although [`BackendChoice::Auto`](super::BackendChoice::Auto) would
    /// prefer a GPU. Also set if the GPU was lost.
    pub fn note(&self) -> Option<&str> {
        self.lost().or(self.0.note.as_deref())
    }

    /// How the GPU failed after the engine was opened, in one line: it was lost, ran out of memory, or
    /// rejected a command. Sessions then continue on the CPU, if the budget allows.
    pub fn lost(&self) -> Option<&str> {
        self.processors().lost()
    }

    /// For tests: makes the GPU fail with `fault` after `submissions` more submissions. No effect without a
    /// GPU.
    #[doc(hidden)]
    pub fn lose_gpu(&self, submissions: u64, fault: GpuFault) {
        if let Some(gpu) = self.processors().first.processor.accelerator() {
            gpu.lose_after(submissions, fault);
        }
    }

    /// From now on, passes the inputs of every matrix product to `observer`.
    ///
    /// # Errors
    /// `Device` if a GPU computes.
    pub(super) fn observe(&self, observer: Arc<dyn Observer>) -> Result<()> {
        self.cpu()?.observe(observer);
        Ok(())
    }

    pub(super) fn processors(&self) -> &Processors {
        &self.0.processors
    }

    pub(super) fn now(&self) -> &Computing {
        self.processors().now()
    }

    pub(super) fn model(&self) -> &Model {
        &self.now().model
    }

    pub(super) fn processor(&self) -> &dyn Processor {
        &*self.now().processor
    }

    fn cpu(&self) -> Result<&CpuBackend> {
        self.processor().cpu().ok_or_else(|| Error::Device("this engine computes on a GPU".into()))
    }

    /// The number of threads that compute.
    #[doc(hidden)]
    pub fn threads(&self) -> usize {
        self.processor().threads()
    }

    /// Calls of this many tokens or more give each token the same bits, however many they have: 1 if a token
    /// decoded alone has the bits of prefill, else [`MANY`].
    #[doc(hidden)]
    pub fn least_call(&self) -> usize {
        self.processor().least_call()
    }

    /// Counters of the GPU's work since the engine was opened; `None` if the CPU computes.
    pub fn gpu_stats(&self) -> Option<GpuStats> {
        self.processor().accelerator().map(|gpu| gpu.stats())
    }

    /// Measures how many bytes per second this engine's threads read from memory. This bounds the speed of
    /// decoding. Takes the best of five passes over a buffer of `bytes`, which should be larger than the
    /// CPU's caches.
    ///
    /// # Errors
    /// `Invalid` if there is no memory for the buffer, `Device` if a GPU computes.
    #[doc(hidden)]
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64> {
        let cpu = self.cpu()?;
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

    /// Counters of streaming since the engine was opened; `None` if neither experts nor refinements are
    /// streamed.
    pub fn stream_stats(&self) -> Option<StreamStats> {
        match &self.0.served {
            Served::Resident => None,
            Served::Refined(refiner) => Some(refiner.stats()),
            Served::Streamed(streamer) => Some(self.with_rows(streamer.stats())),
        }
    }

    /// Adds the counters of reading embedding rows.
    fn with_rows(&self, mut stats: StreamStats) -> StreamStats {
        if let Embedding::Read(rows) = &self.model().weights.embed {
            let reads = rows.reads();
            stats.bytes_embedding = reads.bytes;
            stats.wait_ns += reads.wait_ns;
            stats.retries += reads.retries;
        }
        stats
    }

    /// Counters of reading rows of the per-layer input embedding; `None` if the model has none or it is in
    /// memory.
    #[doc(hidden)]
    pub fn input_reads(&self) -> Option<RowReads> {
        match self.model().weights.per_layer.as_ref().map(|of| &of.embed) {
            Some(Embedding::Read(rows)) => Some(rows.reads()),
            _ => None,
        }
    }

    /// The streamer, if experts are streamed.
    #[doc(hidden)]
    pub fn streamer(&self) -> Option<&Streamer> {
        match &self.0.served {
            Served::Streamed(streamer) => Some(streamer),
            Served::Resident | Served::Refined(_) => None,
        }
    }

    /// The refiner, which gives some experts an extra plane on a device, if there is one.
    #[doc(hidden)]
    pub fn refiner(&self) -> Option<&Refiner> {
        match &self.0.served {
            Served::Refined(refiner) => Some(refiner),
            Served::Resident | Served::Streamed(_) => None,
        }
    }

    /// How many of the router's choices were dropped, and how many redirected to another expert, since the
    /// engine was opened.
    #[doc(hidden)]
    pub fn routing_departures(&self) -> (u64, u64) {
        let counters = &self.model().counters;
        (counters.dropped.load(Ordering::Relaxed), counters.redirected.load(Ordering::Relaxed))
    }

    /// The model's dimensions and sizes.
    pub fn info(&self) -> &ModelInfo {
        &self.now().info
    }

    /// What a session's KV cache depends on besides its tokens.
    ///
    /// # Errors
    /// `Unsupported` if the model was not read from a Dollop file.
    pub(super) fn identity(&self) -> Result<Identity> {
        let model = self.0.file.ok_or_else(|| {
            Error::unsupported(
                "sessions are saved of Dollop files only, and this model is the unquantized reference",
            )
        })?;
        let routing = &self.model().routing;
        let mut manner = self.processors().manner();
        if routing.is_lossy() {
            let Routing { top_k, skip_cold, cache_prior, .. } = routing;
            let used = top_k.unwrap_or(self.info().experts_used);
            manner += &format!(", {used} experts, skip-cold {skip_cold}, cache-prior {cache_prior}");
        }
        Ok(Identity { model, manner })
    }

    /// The ids of special tokens, such as BOS and end of turn.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The sampling that the model recommends, with defaults for what it leaves open. To change one value:
    /// `Sampling { temperature: 0.2, ..engine.sampling().clone() }`.
    pub fn sampling(&self) -> &Sampling {
        &self.0.sampling
    }

    /// Creates a sampler for this model's vocabulary.
    ///
    /// # Errors
    /// `Invalid`, as [`Sampling::validate`], and for a bias of a token outside the vocabulary.
    #[doc(hidden)]
    pub fn sampler(&self, with: Sampling) -> Result<Sampler> {
        let vocab = self.info().vocab;
        if let Some(b) = with.logit_bias.iter().find(|b| b.token as usize >= vocab) {
            return Err(Error::Invalid(format!("logit-bias: token {}: there are {vocab}", b.token)));
        }
        let mut sampler = Sampler::new(with)?;
        if let Some(texts) = sampler.breakers() {
            let breakers = self.breakers(texts);
            sampler.set_breakers(breakers);
        }
        Ok(sampler)
    }

    /// Finds the tokens that contain the breakers' texts. This searches the whole vocabulary, so we cache the
    /// last result.
    fn breakers(&self, texts: &[String]) -> Breakers {
        // Without a tokenizer, tokens have no text.
        let Ok(tokenizer) = self.tokenizer() else { return Breakers::default() };
        let mut last = self.0.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, breakers)) if of == texts => breakers.clone(),
            _ => {
                let words = (0..self.info().vocab as u32).map(|id| (id, tokenizer.decode(&[id], false)));
                let ids = |text: &str| tokenizer.encode(text, false).unwrap_or_default();
                let breakers = Breakers::new(texts, words, &ids);
                *last = Some((texts.to_vec(), breakers.clone()));
                breakers
            }
        }
    }

    /// The vocabulary for grammars.
    ///
    /// # Errors
    /// `Unsupported` for a model without a tokenizer, and for one whose tokens are not byte strings.
    #[doc(hidden)]
    pub fn words(&self) -> Result<Arc<Words>> {
        let mut words = self.0.words.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = &*words {
            return Ok(words.clone());
        }
        let made = Arc::new(Words::new(self.tokenizer()?, self.info().vocab, &self.0.special.ends)?);
        *words = Some(made.clone());
        Ok(made)
    }

    /// Compiles a constraint for this model's vocabulary. A large schema takes seconds, and a generation that
    /// begins with the compiled constraint does not wait for it.
    ///
    /// # Errors
    /// `Invalid` for a constraint that does not compile; those of [`Engine::words`].
    #[doc(hidden)]
    pub fn compile(&self, constraint: Constraint) -> Result<Constraint> {
        constraint.compiled(&self.words()?)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `Unsupported` for a model without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(tokens::no_tokenizer)
    }

    /// The parsed chat template.
    ///
    /// # Errors
    /// `Unsupported` for a model without one, `Template` for one that does not parse.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::parse(self.0.template.as_deref().ok_or_else(tokens::no_template)?)
    }

    /// The format in which the model's template writes tool calls, if it is a known one.
    pub fn tool_format(&self) -> Option<Format> {
        Format::of(self.0.template.as_deref()?)
    }

    /// Tokenizes a text that is not a chat. Adds the tokens that the model wants at the beginning, such as
    /// BOS.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, true)
    }
}
