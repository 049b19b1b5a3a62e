//! A loaded model: weights, tokenizer, template, processor. Shared by all its sessions.

use super::tensors::Reference;
use crate::convert::source::Source;
use crate::error::{Error, Result};
use crate::experts::AllResident;
use crate::format::{Metadata, dollop};
use crate::kernels::Backend;
use crate::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use crate::model::file::NestedFile;
use crate::model::{Config, Model, Tensors, Weights, weights::Ffn};
use crate::quant::Level;
use crate::store;
use crate::template::ChatTemplate;
use crate::tokenizer::{Tokenizer, Vocab};
use std::path::Path;
use std::sync::Arc;

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads, the caller's included; 0 for one per core.
    pub threads: usize,
    /// Level at which experts are read; by default the highest stored.
    pub level: Option<Level>,
    /// Instruction set; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// Cores to run on, by the system's numbers; by default all. Linux and Android only.
    pub cores: Option<Vec<usize>>,
}

/// Ids with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Whether texts that are no chat begin with it.
    pub add_bos: bool,
    /// End of text.
    pub eos: Option<u32>,
    /// All ids that end an answer.
    pub ends: Vec<u32>,
}

impl SpecialTokens {
    /// Whether this id ends an answer.
    pub fn ends_turn(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

/// A model in numbers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelInfo {
    /// `general.name`.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Experts per routed layer; 0 for a dense model.
    pub experts: usize,
    /// Experts per token.
    pub experts_used: usize,
    /// Longest context the model was made for, in tokens.
    pub context: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Weights in matrices.
    pub parameters: u64,
    /// Weights in matrices that one token passes through (of the embedding, one row).
    pub active_parameters: u64,
    /// Bytes of those weights at the level in use: what a token reads.
    pub active_bytes: u64,
    /// Bytes of all weights at the level in use.
    pub bytes: u64,
    /// How it runs, for people: residency, mode, level.
    pub mode: String,
    /// What it runs on, for people.
    pub backend: String,
}

struct Inner {
    model: Model,
    backend: CpuBackend,
    tokenizer: Option<Tokenizer>,
    template: Option<String>,
    special: SpecialTokens,
    info: ModelInfo,
}

/// A loaded model. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Opens a Dollop file. Weights are read from the mapping: nothing is loaded.
    ///
    /// # Errors
    /// `Malformed`, `Unsupported` or `Io`, naming the file.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine> {
        if path.is_dir() {
            let what = "this is a folder; convert the model in it first (`dollop convert`)";
            return Err(Error::unsupported(what).at(path));
        }
        let bytes = store::map(path)?;
        let file = NestedFile::new(bytes).map_err(|e| e.at(path))?;
        Engine::from_tensors(&file, options).map_err(|e| e.at(path))
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
        Engine::from_tensors(&Reference(source), options).map_err(|e| e.at(path))
    }

    fn from_tensors(tensors: &dyn Tensors, options: &EngineOptions) -> Result<Engine> {
        let meta = tensors.metadata();
        let config = Config::from_metadata(meta)?;
        let (weights, experts) = Weights::load(&config, tensors, options.level)?;
        let level = experts.iter().flatten().find_map(|e| match &e.gate {
            crate::quant::Matrix::Nested(n) => Some(n.level()),
            crate::quant::Matrix::F32 { .. } => None,
        });
        // Unquantized weights are there to be measured against: their keys and values are not rounded either.
        let kv_single = matches!(weights.embed, crate::quant::Matrix::F32 { .. });
        let backend = CpuBackend::new(CpuOptions {
            threads: options.threads,
            isa: options.isa,
            cores: options.cores.clone(),
            kv_single,
        })?;
        let tokenizer = tokenizer(meta)?;
        let special = special_tokens(meta, tokenizer.as_ref())?;
        let mut info = ModelInfo {
            name: config.name.clone(),
            architecture: config.family.name.to_owned(),
            layers: config.layers,
            experts: config.router.map_or(0, |r| r.experts),
            experts_used: config.router.map_or(0, |r| r.top_k),
            context: config.context,
            vocab: weights.vocab(),
            parameters: 0,
            active_parameters: 0,
            active_bytes: 0,
            bytes: 0,
            mode: mode(&weights, level),
            backend: backend.name(),
        };
        count(&mut info, &config, &weights, &experts);
        let model = Model { config, weights, experts: Box::new(AllResident::new(experts, level)) };
        let template = meta.str("tokenizer.chat_template")?.map(str::to_owned);
        Ok(Engine(Arc::new(Inner { model, backend, tokenizer, template, special, info })))
    }

    pub(super) fn model(&self) -> &Model {
        &self.0.model
    }

    pub(super) fn backend(&self) -> &CpuBackend {
        &self.0.backend
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.backend().threads()
    }

    /// Bytes per second that this engine's threads read from memory when they do nothing else: the ceiling of decoding.
    /// The best of five passes over a buffer of `bytes`, which should be larger than the caches.
    ///
    /// # Errors
    /// `Invalid` where there is no memory for the buffer.
    pub fn read_bandwidth(&self, bytes: usize) -> Result<f64> {
        let len = bytes / 8;
        let mut words = Vec::new();
        words.try_reserve_exact(len).map_err(|_| Error::Invalid("no memory for the read test".into()))?;
        words.extend(0..len as u64);
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            std::hint::black_box(self.backend().read(&words));
            best = best.max((len * 8) as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// The model in numbers.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
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

fn mode(weights: &Weights, level: Option<Level>) -> String {
    match (level, &weights.embed) {
        (Some(level), _) => format!("resident, exact level {level}"),
        (None, crate::quant::Matrix::Nested(n)) => format!("resident, dense, exact level {}", n.level()),
        (None, _) => "resident, reference f32".to_owned(),
    }
}

fn count(info: &mut ModelInfo, config: &Config, w: &Weights, routed: &[Vec<crate::experts::Expert>]) {
    let size = |m: &crate::quant::Matrix| ((m.rows() * m.cols()) as u64, m.bytes() as u64);
    let mut all = (0, 0);
    let mut active = (0, 0);
    let add = |to: &mut (u64, u64), (n, bytes): (u64, u64)| *to = (to.0 + n, to.1 + bytes);
    let expert = |e: &crate::experts::Expert| {
        let parts = [&e.gate, &e.up, &e.down].map(size);
        parts.iter().fold((0, 0), |s, p| (s.0 + p.0, s.1 + p.1))
    };
    for (layer, experts) in w.layers.iter().zip(routed) {
        for p in [&layer.q, &layer.k, &layer.v, &layer.o] {
            add(&mut all, size(&p.matrix));
            add(&mut active, size(&p.matrix));
        }
        let always = match &layer.ffn {
            Ffn::Dense(e) => Some(e),
            Ffn::Moe(moe) => {
                add(&mut all, size(&moe.router));
                add(&mut active, size(&moe.router));
                moe.shared.as_ref()
            }
        };
        if let Some(e) = always {
            add(&mut all, expert(e));
            add(&mut active, expert(e));
        }
        experts.iter().for_each(|e| add(&mut all, expert(e)));
        let used = config.router.map_or(0, |r| r.top_k);
        experts.iter().take(used).for_each(|e| add(&mut active, expert(e)));
    }
    let (embed, head) = (size(&w.embed), size(&w.head));
    add(&mut all, embed);
    add(&mut active, head);
    // A tied head is the embedding once more, not more weights.
    let tied = std::ptr::eq(&w.embed, &w.head) || same(&w.embed, &w.head);
    if !tied {
        add(&mut all, head);
    }
    (info.parameters, info.bytes) = all;
    (info.active_parameters, info.active_bytes) = active;
}

/// Whether two matrices are the same bytes in memory.
fn same(a: &crate::quant::Matrix, b: &crate::quant::Matrix) -> bool {
    use crate::quant::Matrix::{F32, Nested};
    match (a, b) {
        (F32 { data: a, .. }, F32 { data: b, .. }) => std::sync::Arc::ptr_eq(a, b),
        (Nested(a), Nested(b)) => std::ptr::eq(a.codes(0), b.codes(0)),
        _ => false,
    }
}

fn id(meta: &Metadata, key: &str) -> Result<Option<u32>> {
    meta.u64(key)?
        .map(|v| u32::try_from(v).map_err(|_| Error::malformed(key, format!("{v} is no token"))))
        .transpose()
}

fn tokenizer(meta: &Metadata) -> Result<Option<Tokenizer>> {
    if let Some(json) = meta.str("tokenizer.huggingface.json")? {
        return Tokenizer::from_json(json).map(Some);
    }
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let (Some(model), Some(tokens)) = (meta.str(&key("model"))?, meta.strings(&key("tokens"))?) else {
        return Ok(None);
    };
    let vocab = Vocab {
        model: model.to_owned(),
        pre: meta.str(&key("pre"))?.map(str::to_owned),
        tokens: tokens.to_vec(),
        scores: meta.f32s(&key("scores"))?.unwrap_or_default().to_vec(),
        types: meta.i64s(&key("token_type"))?.unwrap_or_default(),
        merges: meta.strings(&key("merges"))?.unwrap_or_default().to_vec(),
        bos: id(meta, &key("bos_token_id"))?,
        eos: id(meta, &key("eos_token_id"))?,
        add_bos: meta.bool(&key("add_bos_token"))?,
        add_eos: meta.bool(&key("add_eos_token"))?,
        add_space_prefix: meta.bool(&key("add_space_prefix"))?,
    };
    Tokenizer::from_vocab(&vocab).map(Some)
}

/// Tokens that end a turn in the templates of many models, whatever the file calls its end of text.
const TURN_ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
];

fn special_tokens(meta: &Metadata, tokenizer: Option<&Tokenizer>) -> Result<SpecialTokens> {
    let (bos, eos) = (id(meta, "tokenizer.ggml.bos_token_id")?, id(meta, "tokenizer.ggml.eos_token_id")?);
    let mut ends: Vec<u32> = eos.into_iter().chain(id(meta, "tokenizer.ggml.eot_token_id")?).collect();
    let listed = meta.u64s("dollop.tokenizer.eot_token_ids")?.unwrap_or_default();
    ends.extend(listed.into_iter().filter_map(|v| u32::try_from(v).ok()));
    ends.extend(TURN_ENDS.iter().filter_map(|t| tokenizer?.token_id(t)));
    ends.sort_unstable();
    ends.dedup();
    let add_bos = meta
        .bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(meta.str("tokenizer.ggml.model")? == Some("llama"));
    Ok(SpecialTokens { bos, add_bos, eos, ends })
}
