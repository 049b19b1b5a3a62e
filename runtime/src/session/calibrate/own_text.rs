//! Generates calibration text that uses all experts of the model. A text from elsewhere leaves out experts
//! that it has no use for, and their codes would then be fitted to nothing. The method is expert-balanced
//! self-sampling as in MoEQuant (arXiv 2505.03804), without its tree of candidates: of two continuations, we
//! keep the one that is likelier and chooses experts that were chosen less.
//!
//! The text depends only on the model and [`SEED`]. `web.txt` contains Ruth 2, Ecclesiastes 3 and James 3 of
//! the World English Bible (public domain), as `bible` in models/corpus.py reads them from Debian's
//! `sword-text-web`.

use super::meter::{Chosen, Meter, lock};
use crate::convert::journal::{Journal, Record};
use crate::convert::packing::{Pack, Unpack};
use crate::error::{Error, Result};
use crate::model::forward::Want;
use crate::sampler::{Sampler, Sampling};
use crate::session::timeline::{Session, Step};
use crate::telemetry::CancelToken;
use std::collections::BTreeMap;

/// A text in the public domain, at most a quarter of the measured tokens, so that human text is measured,
/// too.
pub(super) const TEXT: &str = include_str!("web.txt");

const SEED: u64 = 1;
/// Tokens per continuation.
const SEGMENT: usize = 32;
/// Continuations that are compared, if the model has experts.
const BRANCHES: usize = 2;
/// Candidates for a window's first token, spread over the vocabulary and computed in one pass.
const STARTS: usize = 96;
/// The weight of expert balance in a continuation's cost. An expert that was chosen as often as its layer's
/// mean costs as much as this many nats per token.
const BALANCE: f64 = 2.0;
/// An expert with fewer choices than this is rare: its inputs are too few to measure. We write extra text for
/// rare experts, with a new token that chooses them after every `APART` tokens.
const LEAST: u64 = 16;
const APART: usize = 4;

/// Counts how often experts were chosen.
#[derive(Default)]
struct Balance {
    /// The counts of each layer's experts.
    counts: BTreeMap<usize, Vec<u64>>,
}

impl Balance {
    /// The square root of an expert's count over its layer's mean. The root makes rare experts differ most.
    fn load(&self, of: &Chosen) -> f64 {
        let counts = &self.counts[&of.layer];
        let all: u64 = counts.iter().sum();
        if all == 0 { 0.0 } else { ((counts[of.expert] * counts.len() as u64) as f64 / all as f64).sqrt() }
    }

    /// How many of these choices are of rare experts.
    fn needed<'a>(&self, chosen: impl Iterator<Item = &'a Chosen>) -> usize {
        chosen.filter(|of| self.counts[&of.layer][of.expert] < LEAST).count()
    }

    /// The mean load of these choices.
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
    /// The logits after its last token.
    logits: Vec<f32>,
    chosen: Vec<Chosen>,
    /// The mean surprise in nats per token, plus the cost of its choices of experts.
    cost: f64,
}

/// A model that generates calibration text.
pub(super) struct Writer<'a> {
    session: Session,
    meter: &'a Meter,
    cancel: &'a CancelToken,
    balance: Balance,
    sampler: Sampler,
    /// The sampling options. Each window sets its own seed.
    sampling: Sampling,
    bos: Option<u32>,
    /// First tokens that were tried so far.
    tried: u32,
}

impl<'a> Writer<'a> {
    /// `experts`: the number of experts of each routed layer.
    pub(super) fn new(
        session: Session,
        meter: &'a Meter,
        experts: &BTreeMap<usize, usize>,
        bos: Option<u32>,
        cancel: &'a CancelToken,
    ) -> Result<Writer<'a>> {
        // Nearly the whole distribution: a token that is cut off would reach no expert.
        let sampling =
            Sampling { top_k: 0, top_p: 1.0, min_p: 0.02, temperature: 1.0, ..Sampling::default() };
        let sampler = Sampler::new(sampling.clone())?;
        let counts = experts.iter().map(|(&layer, &n)| (layer, vec![0; n])).collect();
        Ok(Writer { session, meter, cancel, balance: Balance { counts }, sampler, sampling, bos, tried: 0 })
    }

    /// Generates about `tokens` tokens in windows of `window`, including those that the journal already has.
    /// Adds up to half as many for rare experts.
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

    /// Records a window in the journal, with the state that the next window depends on.
    fn note(&self, journal: Option<&Journal>, ids: &[u32]) -> Result<()> {
        let Some(journal) = journal else { return Ok(()) };
        let mut to = Pack::default();
        to.words(ids);
        to.number(self.tried.into());
        self.balance.counts.values().flatten().for_each(|&n| to.number(n));
        journal.add(Record::Window(to.0))
    }

    /// The windows in the journal. Restores the state after the last one.
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

    /// Begins a window: returns its first token, and the logits after it.
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

    /// A window for rare experts. It jumps to a new token again and again, as long as there are such experts.
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

    /// Appends a token that does not continue the text. Of some spread over the vocabulary, takes the one
    /// that chooses the most rare experts, or on a tie the least loaded ones.
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

    /// Generates `n` tokens, the first of them from `logits`.
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

    /// Appends tokens. Returns the logits after the last one, and the choices of the routers.
    fn read(&mut self, tokens: &[u32]) -> Result<(Vec<f32>, Vec<Chosen>)> {
        let mut last = Vec::new();
        self.session.append(tokens, Want::Last, Some(self.cancel), &mut |step| {
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
