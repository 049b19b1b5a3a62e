//! Runs an unquantized model on a text and measures the inputs of its matrices. The conversion uses these to
//! choose codes whose errors matter least.
//!
//! The source model runs in f32 on the CPU, like the reference. We skip the embedding, which has no inputs,
//! and the output head, which keeps enough bits to gain nothing.

mod meter;
mod own_text;

use super::engine::Engine;
use super::options::EngineOptions;
use super::tensors::Reference;
use super::timeline::{SessionOptions, Step};
use crate::convert::journal::Record;
use crate::convert::source::Source;
use crate::convert::{Calibration, Inputs, Journal, Rows};
use crate::error::{Error, Result};
use crate::format::dollop::is_dollop;
use crate::model::forward::Want;
use crate::model::weights::Ffn;
use crate::quant::Matrix;
use crate::store;
use crate::telemetry::{CancelToken, Progress};
use meter::{Kept, Meter, ROUTER, Recording, Routed, Total, keeps, lock};
use own_text::Writer;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Tokens per window. The same as in llama.cpp, so that both see equally many text beginnings.
const WINDOW: usize = 512;
/// The fewest tokens that give a useful measurement.
const MIN_TOKENS: usize = 64;
/// Bytes of the text that are used. More would take hours.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Tokens per prefill chunk. Progress and cancellation are handled after each.
const CHUNK: usize = 128;

/// Options of a calibration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// The most tokens to run. Windows of them are spread evenly over the text.
    pub tokens: usize,
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// Which matrices' inputs are stored row by row, for error feedback, and beside which file.
    #[doc(hidden)]
    pub keep: Option<Keep>,
    /// The journal from which a killed calibration resumes. The inputs of experts are then stored beside the
    /// journal, whatever `keep` says.
    #[doc(hidden)]
    pub resume: Option<Journal>,
}

/// Which matrices' inputs are stored.
#[derive(Clone, Debug)]
pub struct Keep {
    /// The inputs' file is created beside this path, and deleted with the [`Calibration`].
    pub path: PathBuf,
    /// Whether inputs of dense matrices are stored, too.
    pub dense: bool,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        CalibrateOptions { tokens: 8192, threads: 0, keep: None, resume: None }
    }
}

impl CalibrateOptions {
    /// Sets the most tokens to run.
    #[must_use]
    pub fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets the number of threads; 0 for one per core.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets which matrices' inputs are stored.
    #[doc(hidden)]
    #[must_use]
    pub fn with_keep(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }
}

/// Runs the model at `source` on `text` and measures the inputs of its matrices. `named` names the text in
/// the result's description.
///
/// # Errors
/// `Budget` if the weights do not fit the memory in f32; `Invalid` if the text is too short; `Unsupported`
/// for a source without a tokenizer; `Cancelled`; those of opening the source.
pub fn calibrate(
    source: &Path,
    text: &str,
    named: &str,
    options: &CalibrateOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Calibration> {
    if let Some(measured) = measured(options) {
        return Ok(measured);
    }
    let run = Run::open(source, options)?;
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    let ids = run.engine.tokenizer()?.encode(&text[..end], false)?;
    let windows = run.windows_of(&ids, named, options)?;
    run.measure(&windows, named, cancel, progress)
}

/// [`calibrate`] on token ids instead of a text.
///
/// # Errors
/// As [`calibrate`].
#[doc(hidden)]
pub fn calibrate_tokens(
    source: &Path,
    ids: &[u32],
    named: &str,
    options: &CalibrateOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Calibration> {
    if let Some(measured) = measured(options) {
        return Ok(measured);
    }
    let run = Run::open(source, options)?;
    let windows = run.windows_of(ids, named, options)?;
    run.measure(&windows, named, cancel, progress)
}

/// [`calibrate`] without a text. The model generates one that uses each of its experts, and a short text in
/// the public domain is added. The same model generates the same text. Generating takes about as long as
/// computing twice that many tokens.
///
/// # Errors
/// As [`calibrate`], but the source needs no tokenizer.
pub fn calibrate_by_itself(
    source: &Path,
    options: &CalibrateOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Calibration> {
    if let Some(measured) = measured(options) {
        return Ok(measured);
    }
    let run = Run::open(source, options)?;
    let (windows, named) = run.own_text(options, cancel, progress)?;
    run.measure(&windows, &named, cancel, progress)
}

/// The measurements of an earlier, interrupted conversion.
fn measured(options: &CalibrateOptions) -> Option<Calibration> {
    let journal = options.resume.as_ref()?;
    let records = journal.records();
    let at = records.iter().position(|record| matches!(record, Record::Measured(_)))?;
    let Record::Measured(packed) = &records[at] else { return None };
    let measured = Calibration::unpack(journal, packed);
    if measured.is_none() {
        // Without the inputs, this record and all later ones are useless. If cutting fails, they are
        // overwritten.
        let _ = journal.cut(at);
    }
    measured
}

/// A source model with an engine that runs it, and the meter that observes it.
struct Run {
    engine: Engine,
    meter: Arc<Meter>,
    /// Name and expert of every measured matrix, in the order of the meter's slots.
    names: Vec<(String, usize)>,
    /// The number of experts of each routed layer.
    experts: BTreeMap<usize, usize>,
    journal: Option<Journal>,
}

impl Run {
    fn open(path: &Path, calibrate: &CalibrateOptions) -> Result<Run> {
        let source = Source::open(path)?;
        if is_dollop(source.metadata()) {
            return Err(Error::unsupported("inputs are measured on a source, not on a Dollop file").at(path));
        }
        fits(&source).map_err(|e| e.at(path))?;
        let recording = Recording { tensors: Reference(source), places: RefCell::default() };
        let options = EngineOptions { threads: calibrate.threads, ..EngineOptions::default() };
        let engine = Engine::of_tensors(&recording, path, &options)?;
        let mut places = recording.places.into_inner();
        let (mut names, mut slots, mut layers) = (Vec::new(), HashMap::new(), HashMap::new());
        let mut experts = BTreeMap::new();
        for (layer, router) in routers(&engine) {
            let (address, name) = (router.address(), format!("blk.{layer}{ROUTER}weight"));
            places.insert(address, (name, 0, router.cols()));
            layers.insert(address, layer);
            experts.insert(layer, router.rows());
        }
        for (address, (name, expert, cols)) in places {
            slots.insert(address, names.len());
            names.push((name, expert, cols));
        }
        let routers = layers.into_iter().map(|(address, layer)| (slots[&address], layer)).collect();
        let totals = names.iter().map(|&(.., cols)| Total { sums: vec![0.0; cols], tokens: 0 }).collect();
        let names: Vec<(String, usize)> = names.into_iter().map(|(name, e, _)| (name, e)).collect();
        let rows = match (&calibrate.resume, &calibrate.keep) {
            (Some(journal), _) => Some(Rows::of_journal(journal)?),
            (None, Some(keep)) => Some(Rows::new(&keep.path)?),
            (None, None) => None,
        };
        let dense = calibrate.keep.as_ref().is_some_and(|keep| keep.dense);
        let rows = rows.map(|rows| Kept {
            rows: Arc::new(rows),
            which: names.iter().map(|(name, _)| keeps(name, dense)).collect(),
            names: names.clone(),
            failed: Mutex::new(None),
        });
        let (totals, routed) = (Mutex::new(totals), Mutex::new(Routed::default()));
        let meter = Arc::new(Meter { slots, totals, kept: rows, routers, routed });
        engine.observe(meter.clone())?;
        Ok(Run { engine, meter, names, experts, journal: calibrate.resume.clone() })
    }

    /// Tokens per window, without the BOS token that begins each.
    fn window(&self) -> usize {
        WINDOW.min(self.engine.info().context) - self.bos().iter().len()
    }

    fn bos(&self) -> Option<u32> {
        let special = self.engine.special_tokens();
        special.bos.filter(|_| special.add_bos)
    }

    /// The windows of a text that are run.
    fn windows_of(&self, ids: &[u32], named: &str, options: &CalibrateOptions) -> Result<Vec<Vec<u32>>> {
        enough(named, ids.len().min(options.tokens))?;
        Ok(spread(ids, self.window(), options.tokens).into_iter().map(<[u32]>::to_vec).collect())
    }

    /// The windows that the model generates and those of the built-in text, and a name for both.
    fn own_text(
        &self,
        options: &CalibrateOptions,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<Vec<u32>>, String)> {
        let tokens = options.tokens;
        const WRITTEN: &str = "text that the model wrote";
        enough(WRITTEN, tokens)?;
        let mut windows = Vec::new();
        if let Ok(tokenizer) = self.engine.tokenizer() {
            let ids = tokenizer.encode(own_text::TEXT, false)?;
            windows.extend(spread(&ids, self.window(), tokens / 4).into_iter().map(<[u32]>::to_vec));
        }
        let there: usize = windows.iter().map(Vec::len).sum();
        let (wanted, window) = (tokens - there, self.window());
        let context = window + self.bos().iter().len();
        let session = self.engine.session(SessionOptions { context: Some(context), chunk: Some(CHUNK) })?;
        let mut writer = Writer::new(session, &self.meter, &self.experts, self.bos(), cancel)?;
        let written = writer.write(wanted, window, options.resume.as_ref(), &mut |done| {
            progress(Progress { stage: "writing text", done: 4 * done as u64, total: 4 * wanted as u64 });
        })?;
        let more = if windows.is_empty() { "" } else { " and of a text in the public domain" };
        windows.extend(written);
        Ok((windows, format!("{WRITTEN}{more}")))
    }

    fn measure(
        self,
        windows: &[Vec<u32>],
        named: &str,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Calibration> {
        let (bos, total) = (self.bos(), windows.iter().map(Vec::len).sum::<usize>());
        let context = self.window() + bos.iter().len();
        let mut session =
            self.engine.session(SessionOptions { context: Some(context), chunk: Some(CHUNK) })?;
        let mut done = 0;
        for window in windows {
            session.rewind(0);
            let tokens: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
            session.append(&tokens, Want::Last, Some(cancel), &mut |step| {
                if let Step::Read(n) = step {
                    // Progress counts bytes: four per token.
                    let bytes = 4 * (done + n.min(window.len())) as u64;
                    progress(Progress { stage: "calibrating", done: bytes, total: 4 * total as u64 });
                }
                Ok(())
            })?;
            if let Some(e) = self.meter.kept.as_ref().and_then(|kept| lock(&kept.failed).take()) {
                return Err(e);
            }
            done += window.len();
        }
        drop(session);
        self.result(format!("inputs measured on {total} tokens of {named}"))
    }

    fn result(self, description: String) -> Result<Calibration> {
        let totals = std::mem::take(&mut *lock(&self.meter.totals));
        let mut stacks: BTreeMap<String, BTreeMap<usize, Total>> = BTreeMap::new();
        for ((name, expert), total) in self.names.into_iter().zip(totals) {
            stacks.entry(name).or_default().insert(expert, total);
        }
        let mut all = Calibration::new(description);
        for (name, experts) in stacks {
            let counts: Vec<f32> = experts.values().map(|t| t.tokens as f32).collect();
            let sums: Vec<f32> = experts.values().flat_map(|t| &t.sums).map(|&s| s as f32).collect();
            // Routers stay f32, so only their stored rows are needed. Inputs that are all zero carry no
            // information.
            if name.contains(ROUTER) || sums.iter().all(|&s| s == 0.0) {
                continue;
            }
            let inputs = Inputs { sums, counts };
            if name.contains("ffn_gate") {
                all.insert(name.replace("ffn_gate", "ffn_up"), inputs.clone())?;
            }
            all.insert(name, inputs)?;
        }
        let mut shares = std::mem::take(&mut lock(&self.meter.routed).shares);
        for (layer, count) in self.experts {
            let mut of = shares.remove(&layer).unwrap_or_default();
            of.resize(count, 0.0);
            all.insert_shares(layer, of.into_iter().map(|s| s as f32).collect())?;
        }
        let Some(kept) = &self.meter.kept else { return Ok(all) };
        let all = all.with_rows(kept.rows.clone());
        if let Some(journal) = &self.journal {
            journal.add(Record::Measured(all.pack()?))?;
        }
        Ok(all)
    }
}

/// The routers by layer. The loader reads them as vectors, and [`Recording`] notes only matrices.
fn routers(engine: &Engine) -> impl Iterator<Item = (usize, &Matrix)> {
    let layers = engine.model().weights.layers.iter().enumerate();
    layers.filter_map(|(i, layer)| match &layer.ffn {
        Ffn::Moe(moe) => Some((i, &moe.router)),
        Ffn::Dense(_) | Ffn::Nothing => None,
    })
}

/// # Errors
/// `Invalid` if `tokens` are too few to measure on.
fn enough(named: &str, tokens: usize) -> Result<()> {
    if tokens >= MIN_TOKENS {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{named}: {tokens} tokens are too few to measure anything on; {MIN_TOKENS} are the least, and thousands are wanted"
    )))
}

/// Windows of at most `window` ids, about `most` ids in all, spread evenly over the text.
fn spread(ids: &[u32], window: usize, most: usize) -> Vec<&[u32]> {
    let all: Vec<&[u32]> = ids.chunks(window).collect();
    let want = most.div_ceil(window).min(all.len());
    (0..want).map(|i| all[i * all.len() / want]).map(|w| &w[..w.len().min(most)]).collect()
}

/// # Errors
/// `Budget` if the weights of `source` do not fit the available memory in f32.
fn fits(source: &Source) -> Result<()> {
    let weights: u64 = source
        .names()
        .filter_map(|name| source.shape(name))
        .map(|shape| shape.iter().map(|&n| n as u64).fold(4, u64::saturating_mul))
        .fold(0, u64::saturating_add);
    // We add an eighth for the rest: the KV cache of one window, activations, and sums.
    let smallest = weights.saturating_add(weights / 8);
    match store::available_bytes() {
        Some(budget) if budget < smallest => Err(Error::Budget {
            budget,
            smallest,
            hint: ", for measuring runs the source in f32; `--imatrix FILE` takes what others have measured"
                .into(),
        }),
        _ => Ok(()),
    }
}
