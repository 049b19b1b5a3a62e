//! Text that a model writes itself, in which each of its experts has its part: a text from elsewhere leaves experts out that it
//! has no use for, and their codes are then made for nothing. Expert-balanced self-sampling as in MoEQuant
//! (arXiv 2505.03804), without its tree of candidates: of two continuations of some tokens the one stays that is likelier and
//! chooses experts that were chosen less.
//!
//! What is written follows from the model and [`SEED`] alone. `web.txt` are Ruth 2, Ecclesiastes 3 and James 3 of the World
//! English Bible (public domain), as `bible` of models/corpus.py reads them from Debian's `sword-text-web`.

use super::meter::{Chosen, Meter, lock};
use crate::convert::journal::{Journal, Record};
use crate::convert::packing::{Pack, Unpack};
use crate::error::{Error, Result};
use crate::sampler::{Sampler, Sampling};
use crate::session::timeline::{Session, Step, Wish};
use crate::telemetry::CancelToken;
use std::collections::BTreeMap;

/// A text in the public domain, a quarter of what is measured at most: what people wrote, beside what the model does.
pub(super) const TEXT: &str = include_str!("web.txt");

const SEED: u64 = 1;
/// Tokens after which continuations are compared.
const SEGMENT: usize = 32;
/// Continuations that are compared, where the model has experts.
const BRANCHES: usize = 2;
/// Tokens of the vocabulary among which a window's first is chosen, in one pass.
const STARTS: usize = 96;
/// How much an expert chosen as often as its layer's mean counts beside a token of so many nats.
const BALANCE: f64 = 2.0;
/// Choices below which an expert's inputs say nothing: for those more is written, every few tokens one that chooses them.
const LEAST: u64 = 16;
const APART: usize = 4;

/// How often experts were chosen.
#[derive(Default)]
struct Balance {
    /// By layer.
    counts: BTreeMap<usize, Vec<u64>>,
}

impl Balance {
    /// How often an expert was chosen, as a multiple of its layer's mean: the root of it, so that the rare ones differ most.
    fn load(&self, of: &Chosen) -> f64 {
        let counts = &self.counts[&of.layer];
        let all: u64 = counts.iter().sum();
        if all == 0 { 0.0 } else { ((counts[of.expert] * counts.len() as u64) as f64 / all as f64).sqrt() }
    }

    /// How many of some choices are of experts that had too few.
    fn needed<'a>(&self, chosen: impl Iterator<Item = &'a Chosen>) -> usize {
        chosen.filter(|of| self.counts[&of.layer][of.expert] < LEAST).count()
    }

    /// The mean of some choices.
    fn mean_load<'a>(&self, chosen: impl Iterator<Item = &'a Chosen>) -> f64 {
        let (sum, n) = chosen.fold((0.0, 0u64), |(sum, n), of| (sum + self.load(of), n + 1));
        sum / n.max(1) as f64
    }

    fn add(&mut self, chosen: &[Chosen]) {
        for of in chosen {
            self.counts.get_mut(&of.layer).expect("a routed layer")[of.expert] += 1;
        }
    }

    fn least(&self) -> Option<u64> {
        self.counts.values().flatten().min().copied()
    }
}

/// A continuation.
struct Segment {
    tokens: Vec<u32>,
    /// Behind the last of them.
    logits: Vec<f32>,
    chosen: Vec<Chosen>,
    /// Its surprise in nats a token, and what its choices of experts add.
    cost: f64,
}

/// A model that writes.
pub(super) struct Writer<'a> {
    session: Session,
    meter: &'a Meter,
    cancel: &'a CancelToken,
    balance: Balance,
    sampler: Sampler,
    /// The sampler's numbers but for the seed, which each window has anew.
    sampling: Sampling,
    bos: Option<u32>,
    /// First tokens that were tried.
    tried: u32,
}

impl<'a> Writer<'a> {
    /// `experts`: how many each routed layer has.
    pub(super) fn new(
        session: Session,
        meter: &'a Meter,
        experts: &BTreeMap<usize, usize>,
        bos: Option<u32>,
        cancel: &'a CancelToken,
    ) -> Result<Writer<'a>> {
        // The whole distribution but its faintest end: what is cut is seen by no expert.
        let sampling =
            Sampling { top_k: 0, top_p: 1.0, min_p: 0.02, temperature: 1.0, ..Sampling::default() };
        let sampler = Sampler::new(sampling.clone())?;
        let counts = experts.iter().map(|(&layer, &n)| (layer, vec![0; n])).collect();
        Ok(Writer { session, meter, cancel, balance: Balance { counts }, sampler, sampling, bos, tried: 0 })
    }

    /// About `tokens` tokens in windows of `window`, those first that a journal has, and up to half as many again for experts that had too few.
    ///
    /// # Errors
    /// Those of computing, `Cancelled`.
    pub(super) fn write(
        &mut self,
        tokens: usize,
        window: usize,
        journal: Option<&Journal>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<u32>>> {
        lock(&self.meter.routed).writing = Some(Vec::new());
        let mut windows = self.written_before(journal);
        let mut done: usize = windows.iter().map(Vec::len).sum();
        while done < tokens {
            self.seed(windows.len())?;
            let ids = self.window(window.min(tokens - done), &mut |n| progress(done + n))?;
            done += ids.len();
            self.note(journal, &ids)?;
            windows.push(ids);
        }
        let most = tokens + tokens / 2;
        while done < most && self.balance.least().is_some_and(|least| least < LEAST) {
            self.seed(windows.len())?;
            let ids = self.rare_window(window.min(most - done))?;
            done += ids.len();
            self.note(journal, &ids)?;
            windows.push(ids);
        }
        lock(&self.meter.routed).writing = None;
        Ok(windows)
    }

    fn seed(&mut self, window: usize) -> Result<()> {
        self.sampler = Sampler::new(self.sampling.clone().with_seed(SEED + window as u64))?;
        Ok(())
    }

    /// A window is written: what the next one follows from beside its number.
    fn note(&self, journal: Option<&Journal>, ids: &[u32]) -> Result<()> {
        let Some(journal) = journal else { return Ok(()) };
        let mut to = Pack::default();
        to.words(ids);
        to.number(self.tried.into());
        self.balance.counts.values().flatten().for_each(|&n| to.number(n));
        journal.add(Record::Window(to.0))
    }

    /// The windows that a journal has, behind which this goes on.
    fn written_before(&mut self, journal: Option<&Journal>) -> Vec<Vec<u32>> {
        let mut windows = Vec::new();
        for record in journal.map(Journal::records).unwrap_or_default() {
            let Record::Window(packed) = record else { break };
            let mut from = Unpack(&packed);
            let Some((ids, tried)) = from.words().zip(from.number()) else { break };
            windows.push(ids);
            self.tried = tried as u32;
            for count in self.balance.counts.values_mut().flatten() {
                *count = from.number().unwrap_or(0);
            }
        }
        windows
    }

    /// The first token of a window, and the logits behind it.
    fn begin(&mut self) -> Result<(u32, Vec<f32>)> {
        self.session.rewind(0);
        if let Some(bos) = self.bos {
            self.read(&[bos])?;
        }
        self.jump()
    }

    fn window(&mut self, len: usize, progress: &mut dyn FnMut(usize)) -> Result<Vec<u32>> {
        let (first, mut logits) = self.begin()?;
        let mut ids = vec![first];
        let branches = if self.balance.counts.is_empty() { 1 } else { BRANCHES };
        while ids.len() < len {
            let (at, n) = (self.session.tokens().len(), SEGMENT.min(len - ids.len()));
            let mut best = self.segment(logits.clone(), n)?;
            let mut last = true;
            for _ in 1..branches {
                self.session.rewind(at);
                let other = self.segment(logits.clone(), n)?;
                last = other.cost < best.cost;
                best = if last { other } else { best };
            }
            if !last {
                self.session.rewind(at);
                self.read(&best.tokens)?;
            }
            self.balance.add(&best.chosen);
            ids.extend(best.tokens);
            logits = best.logits;
            progress(ids.len());
        }
        Ok(ids)
    }

    /// A window that goes on with a token for experts that had too few again and again, as long as there are such.
    fn rare_window(&mut self, len: usize) -> Result<Vec<u32>> {
        let (first, mut logits) = self.begin()?;
        let mut ids = vec![first];
        while ids.len() < len && self.balance.least().is_some_and(|least| least < LEAST) {
            let segment = self.segment(logits, APART.min(len - ids.len()))?;
            self.balance.add(&segment.chosen);
            ids.extend(segment.tokens);
            logits = segment.logits;
            if ids.len() < len {
                let (token, next) = self.jump()?;
                ids.push(token);
                logits = next;
            }
        }
        Ok(ids)
    }

    /// Appends a token that does not follow from those before: of some spread over the vocabulary the one that chooses most
    /// experts that had too few; else those chosen least.
    fn jump(&mut self) -> Result<(u32, Vec<f32>)> {
        let vocab = self.session.engine().model().weights.vocab() as u32;
        let at = self.session.tokens().len();
        let room = self.session.piece(self.session.context() - at);
        let most = if self.balance.counts.is_empty() { 1 } else { STARTS.min(room) as u32 };
        let starts: Vec<u32> = (1..=most)
            .map(|i| (self.tried + i).wrapping_mul(2_654_435_761))
            .map(|hash| ((u64::from(hash) * u64::from(vocab)) >> 32) as u32)
            .collect();
        self.tried += most;
        let mut best = starts[0];
        if starts.len() > 1 {
            let (_, chosen) = self.read(&starts)?;
            self.session.rewind(at);
            let mut by_row = vec![Vec::new(); starts.len()];
            chosen.iter().for_each(|of| by_row[of.row].push(*of));
            let key = |of: &Vec<Chosen>| (self.balance.needed(of.iter()), self.balance.mean_load(of.iter()));
            let keys = by_row.iter().map(key);
            let least =
                starts.iter().zip(keys).min_by(|(_, a), (_, b)| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)));
            best = *least.expect("one at least").0;
        }
        let (logits, chosen) = self.read(&[best])?;
        self.balance.add(&chosen);
        Ok((best, logits))
    }

    /// `n` tokens that begin with one that `logits` say.
    fn segment(&mut self, mut logits: Vec<f32>, n: usize) -> Result<Segment> {
        let (mut tokens, mut chosen, mut surprise) = (Vec::with_capacity(n), Vec::new(), 0.0);
        for _ in 0..n {
            let token = self.sampler.sample(&mut logits);
            surprise += surprise_of(&logits, token);
            tokens.push(token);
            let (next, of) = self.read(&[token])?;
            logits = next;
            chosen.extend(of);
        }
        let cost = surprise / n as f64 + BALANCE * self.balance.mean_load(chosen.iter());
        Ok(Segment { tokens, logits, chosen, cost })
    }

    /// Appends tokens: the logits behind them, and what routers chose.
    fn read(&mut self, tokens: &[u32]) -> Result<(Vec<f32>, Vec<Chosen>)> {
        let mut last = Vec::new();
        self.session.append(tokens, Wish::Last, Some(self.cancel), &mut |step| {
            if let Step::Logits(_, logits) = step {
                last.extend_from_slice(logits);
            }
            Ok(())
        })?;
        let mut routed = lock(&self.meter.routed);
        let writing = routed.writing.as_mut().ok_or_else(|| Error::Invalid("nothing is written".into()))?;
        Ok((last, std::mem::take(writing)))
    }
}

/// −ln p of a token.
fn surprise_of(logits: &[f32], token: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - most)
}
