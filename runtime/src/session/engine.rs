//! A loaded model: weights, tokenizer, template, processor. Shared by all its sessions.
//!
//! This file is what an engine answers; how it comes about is in `prepare` and `open`.

mod open;
mod prepare;

pub(super) use open::release_experts;

use super::failover::{Computing, Processors};
use super::info::ModelInfo;
use super::processor::Processor;
use super::saved::Identity;
use crate::error::{Error, Result};
use crate::experts::RowReads;
use crate::grammar::Words;
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
    /// Why the CPU computes, where a GPU would have been preferred.
    pub(super) note: Option<String>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: Option<String>,
    pub(super) special: SpecialTokens,
    pub(super) sampling: Sampling,
    /// The last texts that DRY follows no repetition over, in tokens.
    pub(super) breakers: Mutex<Option<(Vec<String>, Breakers)>>,
    /// The vocabulary as grammars see it, once one was asked for.
    pub(super) words: Mutex<Option<Arc<Words>>>,
    pub(super) served: Served,
    /// Bytes that the engine may take now.
    pub(super) budget: Mutex<Option<u64>>,
    /// What the file is, for sessions that are saved: checksums of its header and of its weights' checksums. `None` where
    /// the model is not read from a Dollop file.
    pub(super) file: Option<[u32; 2]>,
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
pub struct Engine(pub(super) Arc<Inner>);

impl Engine {
    /// Why the CPU computes, in one line, where [`BackendChoice::Auto`](super::BackendChoice::Auto) would have
    /// preferred a GPU or the GPU was lost.
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
        self.processor().accelerator().map_or(Ok(false), |gpu| gpu.save_pipelines())
    }

    /// For tests: the GPU fails as `fault` says after so many more submissions. Nothing where there is none.
    #[doc(hidden)]
    pub fn lose_gpu(&self, submissions: u64, fault: GpuFault) {
        if let Some(gpu) = self.processors().first.processor.accelerator() {
            gpu.lose_after(submissions, fault);
        }
    }

    /// Shows `observer` the inputs of every product from now on.
    ///
    /// # Errors
    /// `Device` where a GPU computes.
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

    /// Threads that compute.
    #[doc(hidden)]
    pub fn threads(&self) -> usize {
        self.processor().threads()
    }

    /// What the GPU was given to do since the engine was opened; `None` where it computes on the CPU.
    pub fn gpu_stats(&self) -> Option<GpuStats> {
        self.processor().accelerator().map(|gpu| gpu.stats())
    }

    /// Bytes per second that this engine's threads read from memory when they do nothing else: the ceiling of decoding.
    /// The best of five passes over a buffer of `bytes`, which should be larger than the caches.
    ///
    /// # Errors
    /// `Invalid` where there is no memory for the buffer, `Device` where no threads compute.
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

    /// What reading rows for inputs of layers took, where a model has such and they are not held.
    #[doc(hidden)]
    pub fn input_reads(&self) -> Option<RowReads> {
        match self.model().weights.per_layer.as_ref().map(|of| &of.embed) {
            Some(Embedding::Read(rows)) => Some(rows.reads()),
            _ => None,
        }
    }

    /// The streamer, where experts are streamed.
    #[doc(hidden)]
    pub fn streamer(&self) -> Option<&Streamer> {
        match &self.0.served {
            Served::Streamed(streamer) => Some(streamer),
            Served::Resident | Served::Refined(_) => None,
        }
    }

    /// Who gives some experts a plane more, where that is done.
    #[doc(hidden)]
    pub fn refiner(&self) -> Option<&Refiner> {
        match &self.0.served {
            Served::Refined(refiner) => Some(refiner),
            Served::Resident | Served::Streamed(_) => None,
        }
    }

    /// Choices of the router that were dropped, and that went to another expert, since the engine was opened.
    #[doc(hidden)]
    pub fn routing_departures(&self) -> (u64, u64) {
        let counters = &self.model().counters;
        (counters.dropped.load(Ordering::Relaxed), counters.redirected.load(Ordering::Relaxed))
    }

    /// The model in numbers.
    pub fn info(&self) -> &ModelInfo {
        &self.now().info
    }

    /// What a session's keys and values follow from beside its tokens.
    ///
    /// # Errors
    /// `Unsupported` for a model that is not read from a Dollop file.
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

    /// Ids with a meaning.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// How the model wants its tokens chosen, with the built-in numbers where it says nothing:
    /// `Sampling { temperature: 0.2, ..engine.sampling().clone() }`.
    pub fn sampling(&self) -> &Sampling {
        &self.0.sampling
    }

    /// A sampler of this model's tokens.
    ///
    /// # Errors
    /// `Invalid`, as [`Sampling::validate`], and for a bias of a token that there is not.
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

    /// Texts in tokens. Every token is looked at for them, so those of the last sampler are kept for the next.
    fn breakers(&self, texts: &[String]) -> Breakers {
        // Without a tokenizer no token spells anything.
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

    /// The vocabulary as grammars see it.
    ///
    /// # Errors
    /// `Unsupported` for a model without a tokenizer, and for one whose tokens are no bytes.
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

    /// The tokenizer.
    ///
    /// # Errors
    /// `Unsupported` for a model without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or_else(tokens::no_tokenizer)
    }

    /// The chat template, parsed.
    ///
    /// # Errors
    /// `Unsupported` for a model without one, `Template` for one that does not parse.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        ChatTemplate::parse(self.0.template.as_deref().ok_or_else(tokens::no_template)?)
    }

    /// The form in which the model's template writes calls of tools, where it is one that is known.
    pub fn tool_format(&self) -> Option<Format> {
        Format::of(self.0.template.as_deref()?)
    }

    /// The ids of a text that is no chat: with the tokens that the model wants at its beginning.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, true)
    }
}
