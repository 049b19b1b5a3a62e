//! Measures what a model's matrices are multiplied with, on a text: for a conversion that puts its errors where they do
//! least harm.
//!
//! The source itself runs, in f32 on the CPU, as the reference does. Embedding and head are left out: the one has no
//! inputs, and the other is stored at so many bits that it gains nothing.

use super::engine::Engine;
use super::options::EngineOptions;
use super::tensors::Reference;
use super::timeline::{SessionOptions, Step, Wish};
use crate::convert::source::Source;
use crate::convert::{Calibration, Inputs, Rows};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::format::dollop::{PARTS, is_dollop, part_name};
use crate::kernels::Observer;
use crate::model::Tensors;
use crate::model::weights::Ffn;
use crate::quant::{Level, Matrix};
use crate::store;
use crate::telemetry::{CancelToken, Progress};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the names of routers contain.
const ROUTER: &str = ".ffn_gate_inp.";

/// Tokens of a window: what llama.cpp takes, so that both see as many beginnings of texts.
const WINDOW: usize = 512;
/// Fewer tokens than this say nothing.
const MIN_TOKENS: usize = 64;
/// The part of a text that is looked at: hours of windows.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Tokens between two looks at whether to go on.
const CHUNK: usize = 128;

/// How inputs are measured.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CalibrateOptions {
    /// Most tokens that are run, in windows spread evenly over the text.
    pub tokens: usize,
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// Whose inputs are kept themselves, for error feedback, and beside which file.
    #[doc(hidden)]
    pub keep: Option<Keep>,
}

/// Whose inputs are kept.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Their file is made beside this path, and is gone with the [`Calibration`].
    pub path: PathBuf,
    /// Also those of dense matrices.
    pub dense: bool,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        CalibrateOptions { tokens: 8192, threads: 0, keep: None }
    }
}

impl CalibrateOptions {
    /// Most tokens that are run.
    #[must_use]
    pub fn with_tokens(mut self, tokens: usize) -> Self {
        self.tokens = tokens;
        self
    }

    /// Threads; 0 for one per core.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Whose inputs are kept themselves.
    #[doc(hidden)]
    #[must_use]
    pub fn with_keep(mut self, keep: Keep) -> Self {
        self.keep = Some(keep);
        self
    }
}

/// Runs the model at `source` over `text`, whose name is `named`, and measures the inputs of its matrices.
///
/// # Errors
/// `Budget` where the weights do not fit the memory in f32; `Invalid` for a text that is too short; `Unsupported` for a
/// source without a tokenizer; `Cancelled`; those of opening the source.
pub fn calibrate(
    source: &Path,
    text: &str,
    named: &str,
    options: &CalibrateOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Calibration> {
    let run = Run::open(source, options)?;
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    let ids = run.engine.tokenizer()?.encode(&text[..end], false)?;
    run.measure(&ids, named, options, cancel, progress)
}

/// [`calibrate`] for a text that is token ids already.
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
    Run::open(source, options)?.measure(ids, named, options, cancel, progress)
}

/// A source that runs, and what is measured of it.
struct Run {
    engine: Engine,
    meter: Arc<Meter>,
    /// Name and expert of every matrix that is measured, in the order of the meter.
    names: Vec<(String, usize)>,
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
        places.extend(routers(&engine));
        let (mut names, mut slots) = (Vec::new(), HashMap::new());
        for (address, (name, expert, cols)) in places {
            slots.insert(address, names.len());
            names.push((name, expert, cols));
        }
        let totals = names.iter().map(|&(.., cols)| Total { sums: vec![0.0; cols], tokens: 0 }).collect();
        let names: Vec<(String, usize)> = names.into_iter().map(|(name, e, _)| (name, e)).collect();
        let rows = match &calibrate.keep {
            Some(keep) => Some(Kept {
                rows: Arc::new(Rows::new(&keep.path)?),
                which: names.iter().map(|(name, _)| keeps(name, keep.dense)).collect(),
                names: names.clone(),
                failed: Mutex::new(None),
            }),
            None => None,
        };
        let meter = Arc::new(Meter { slots, totals: Mutex::new(totals), kept: rows });
        engine.observe(meter.clone())?;
        Ok(Run { engine, meter, names })
    }

    fn measure(
        self,
        ids: &[u32],
        named: &str,
        options: &CalibrateOptions,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Calibration> {
        if ids.len() < MIN_TOKENS || options.tokens < MIN_TOKENS {
            return Err(Error::Invalid(format!(
                "{named}: {} tokens are too few to measure anything on; {MIN_TOKENS} are the least, and thousands are wanted",
                ids.len().min(options.tokens)
            )));
        }
        let special = self.engine.special_tokens();
        let bos = special.bos.filter(|_| special.add_bos);
        let context = WINDOW.min(self.engine.info().context);
        let windows = spread(ids, context - bos.iter().len(), options.tokens);
        let total: usize = windows.iter().map(|w| w.len()).sum();
        let mut session =
            self.engine.session(SessionOptions { context: Some(context), chunk: Some(CHUNK) })?;
        let mut done = 0;
        for window in windows {
            session.rewind(0);
            let tokens: Vec<u32> = bos.into_iter().chain(window.iter().copied()).collect();
            session.append(&tokens, Wish::Last, Some(cancel), &mut |step| {
                if let Step::Read(n) = step {
                    // Progress counts bytes: those that tokens take.
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
            // Routers stay f32: of them only the inputs themselves are wanted.
            if name.contains(ROUTER) || counts.iter().all(|&n| n == 0.0) {
                continue;
            }
            let sums = experts.values().flat_map(|t| &t.sums).map(|&s| s as f32).collect();
            let inputs = Inputs { sums, counts };
            if name.contains("ffn_gate") {
                all.insert(name.replace("ffn_gate", "ffn_up"), inputs.clone())?;
            }
            all.insert(name, inputs)?;
        }
        Ok(match &self.meter.kept {
            Some(kept) => all.with_rows(kept.rows.clone()),
            None => all,
        })
    }
}

/// Of every router its address, name, expert and columns. They are read as vectors, so that no tensor is noted for them.
fn routers(engine: &Engine) -> impl Iterator<Item = (usize, (String, usize, usize))> {
    let layers = engine.model().weights.layers.iter().enumerate();
    layers.filter_map(|(i, layer)| match &layer.ffn {
        Ffn::Moe(moe) => {
            Some((moe.router.address(), (format!("blk.{i}{ROUTER}weight"), 0, moe.router.cols())))
        }
        Ffn::Dense(_) => None,
    })
}

/// Windows of at most `window` ids that together have about `most`, evenly over the text.
fn spread(ids: &[u32], window: usize, most: usize) -> Vec<&[u32]> {
    let all: Vec<&[u32]> = ids.chunks(window).collect();
    let want = most.div_ceil(window).min(all.len());
    (0..want).map(|i| all[i * all.len() / want]).map(|w| &w[..w.len().min(most)]).collect()
}

/// # Errors
/// `Budget` where the weights of `source` do not fit the memory that is there.
fn fits(source: &Source) -> Result<()> {
    let weights: u64 = source
        .names()
        .filter_map(|name| source.shape(name))
        .map(|shape| shape.iter().map(|&n| n as u64).fold(4, u64::saturating_mul))
        .fold(0, u64::saturating_add);
    // An eighth for all else: keys and values of one window, activations, sums.
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

/// Hands tensors on, and remembers which matrix lies where.
struct Recording<T> {
    tensors: T,
    /// Name, expert and columns by address.
    places: RefCell<BTreeMap<usize, (String, usize, usize)>>,
}

impl<T> Recording<T> {
    fn note(&self, name: &str, expert: usize, matrix: &Matrix) {
        self.places.borrow_mut().insert(matrix.address(), (name.to_owned(), expert, matrix.cols()));
    }
}

impl<T: Tensors> Tensors for Recording<T> {
    fn metadata(&self) -> &Metadata {
        self.tensors.metadata()
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.tensors.rows(name)
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.tensors.vector(name)
    }

    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        let matrix = self.tensors.matrix(name)?;
        if let Some(m) = matrix.as_ref().filter(|_| name.starts_with("blk.")) {
            self.note(name, 0, m);
        }
        Ok(matrix)
    }

    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>> {
        let experts = self.tensors.experts(layer, level)?;
        let [gate, _, down] = PARTS.map(|part| part_name(layer, part));
        for (i, e) in experts.iter().flatten().enumerate() {
            self.note(&gate, i, &e.gate);
            self.note(&down, i, &e.down);
        }
        Ok(experts)
    }
}

/// What was seen of one matrix.
struct Total {
    /// Σ x² of every column.
    sums: Vec<f64>,
    tokens: u64,
}

/// Whether a matrix's inputs are kept. The experts of a layer have their router's, which sees each token once.
fn keeps(name: &str, dense: bool) -> bool {
    let experts = name.contains("_exps.");
    name.contains(ROUTER) || name.contains("ffn_down_exps.") || (dense && !experts)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps inputs themselves.
struct Kept {
    rows: Arc<Rows>,
    /// Of every slot: whether it is kept, its name and expert.
    which: Vec<bool>,
    names: Vec<(String, usize)>,
    /// The first error: products cannot report one.
    failed: Mutex<Option<Error>>,
}

/// Adds up energies. The up projections that are not recorded have the inputs of their gates.
struct Meter {
    /// Index into `totals` by address.
    slots: HashMap<usize, usize>,
    totals: Mutex<Vec<Total>>,
    kept: Option<Kept>,
}

impl Observer for Meter {
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>) {
        let Some(&slot) = self.slots.get(&matrix.address()) else { return };
        let mut totals = lock(&self.totals);
        let Some(Total { sums, tokens }) = totals.get_mut(slot) else { return };
        let cols = sums.len();
        let mut seen = rows.inspect(|row| {
            *tokens += 1;
            let x = &x[row * cols..][..cols];
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        });
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.which[slot]) {
            let (name, expert) = &kept.names[slot];
            if let Err(e) = kept.rows.add(name, *expert, x, cols, &mut seen) {
                lock(&kept.failed).get_or_insert(e);
            }
        }
        seen.for_each(drop);
    }
}
