//! Runs several generations at once (continuous batching). All answers that decode take a step in one call,
//! and prompts are prefilled chunk by chunk between these steps.

use super::engine::Engine;
use super::event::{Event, GenerateOptions, Outcome, Reply};
use super::generation::Generation;
use super::guided::Guided;
use super::listener::Listener;
use super::timeline::Session;
use super::together::{self, Turn};
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The default stall time: how long answers wait for a prompt before they take a step.
const STALL: Duration = Duration::from_millis(200);

/// Runs several generations of one engine at once (continuous batching). A generation may begin or end at any
/// time.
///
/// A step appends one token to every answer, in one call. The call reads each weight and each streamed expert
/// once for all answers. Prompts are prefilled in chunks, in turn. If answers have waited for the stall time
/// ([`Batch::with_stall`]), they take a step between two layers of a chunk. So no answer waits longer than
/// the stall time plus one layer of a chunk.
///
/// With exact precision, an answer is byte-identical to that of [`Session::generate`], whatever else runs.
/// With adaptive precision it is not, because the generations share the expert cache. On a GPU, the sessions
/// take their steps one after another, and a chunk of a prompt is not interrupted.
///
/// `T` is the caller's tag for a generation.
pub struct Batch<T> {
    engine: Engine,
    running: Vec<Running<T>>,
    /// Prompt chunks read so far.
    turn: u64,
    pace: Pace,
}

/// A generation that has ended, with its session.
pub struct Ended<T> {
    /// The tag that was passed to [`Batch::begin`].
    pub tag: T,
    /// The session. It holds the prompt and the answer.
    pub session: Session,
    /// The result of the generation.
    pub outcome: Result<Outcome>,
}

/// Counters of a [`Batch`] since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BatchStats {
    /// Calls that appended tokens to answers.
    pub steps: u64,
    /// Tokens that these calls appended. `tokens / steps` is the mean number of answers per call.
    pub tokens: u64,
    /// The most answers in one call.
    pub most: usize,
    /// The longest time that answers waited for a prompt.
    pub stalled: Duration,
}

struct Running<T> {
    tag: T,
    session: Session,
    sampler: Option<Sampler>,
    generation: Option<Generation>,
    end: Option<Result<Outcome>>,
    /// [`Batch::turn`] when a chunk of this prompt was last read.
    turn: u64,
}

/// When answers take their next step, and the counters.
struct Pace {
    stall: Duration,
    /// When the answers last took a step; `None` if no answer waits.
    last: Option<Instant>,
    stats: BatchStats,
}

/// The callback for the events of all generations.
type OnEvent<'a, T> = RefCell<&'a mut dyn FnMut(&mut T, Event) -> ControlFlow<()>>;

impl<T> Batch<T> {
    /// Creates a batch without generations.
    pub fn new(engine: &Engine) -> Batch<T> {
        let pace = Pace { stall: STALL, last: None, stats: BatchStats::default() };
        Batch { engine: engine.clone(), running: Vec::new(), turn: 0, pace }
    }

    /// Sets the stall time (200 ms by default). A shorter one lets answers step more often while a prompt is
    /// prefilled, and makes prefill slower.
    #[must_use]
    pub fn with_stall(mut self, stall: Duration) -> Self {
        self.pace.stall = stall;
        self
    }

    /// Begins a generation as [`Session::generate`] does. If it cannot begin, the next [`Batch::step`]
    /// returns the error.
    pub fn begin(&mut self, tag: T, mut session: Session, prompt: &[u32], options: &GenerateOptions) {
        let mut made = || {
            if !Arc::ptr_eq(&session.engine().0, &self.engine.0) {
                return Err(Error::Invalid("a batch has sessions of one engine".into()));
            }
            let mut sampler = self.engine.sampler(options.sampling.clone())?;
            let generation = Generation::new(&mut session, prompt, options, &mut sampler)?;
            Ok((sampler, generation))
        };
        let (sampler, generation, end) = match made() {
            Ok((sampler, generation)) => (Some(sampler), Some(generation), None),
            Err(e) => (None, None, Some(Err(e))),
        };
        self.running.push(Running { tag, session, sampler, generation, end, turn: 0 });
    }

    /// The number of generations that [`Batch::step`] has not returned yet.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether there are no such generations.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The counters of this batch.
    pub fn stats(&self) -> BatchStats {
        self.pace.stats
    }

    /// Appends a token to every answer, reads a chunk of one prompt, and returns the generations that have
    /// ended. Events of one generation reach `on_event` in order, and its [`Reply`] may end that generation.
    /// If a generation fails, the others continue.
    pub fn step<R: Reply>(&mut self, on_event: &mut dyn FnMut(&mut T, Event) -> R) -> Vec<Ended<T>> {
        let mut on_event = |tag: &mut T, event| on_event(tag, event).flow();
        let on_event: OnEvent<'_, T> = RefCell::new(&mut on_event);
        decode(&mut self.running.iter_mut().collect::<Vec<_>>(), &mut self.pace, &on_event);
        self.read(&on_event);
        let ended = self.running.extract_if(.., |one| one.end.is_some());
        let ended = ended.map(|one| Ended {
            tag: one.tag,
            session: one.session,
            outcome: one.end.unwrap_or(Err(Error::Cancelled)),
        });
        ended.collect()
    }

    /// Ends all generations at once, as if cancelled. The sessions stay usable, even if [`Batch::step`]
    /// panicked.
    pub fn clear(&mut self) -> Vec<Ended<T>> {
        self.pace.last = None;
        let ended = self.running.drain(..);
        ended
            .map(|one| Ended { tag: one.tag, session: one.session, outcome: Err(Error::Cancelled) })
            .collect()
    }

    /// Reads a chunk of the prompt that has waited longest. Between its layers, the answers take steps.
    fn read(&mut self, on_event: &OnEvent<'_, T>) {
        let Batch { running, turn, pace, .. } = self;
        let reads = |one: &Running<T>| one.generation.as_ref().is_some_and(Generation::reads);
        let prompts = running.iter().enumerate().filter(|(_, one)| reads(one));
        let Some(i) = prompts.min_by_key(|(_, one)| one.turn).map(|(i, _)| i) else { return };
        let (before, rest) = running.split_at_mut(i);
        let Some((one, after)) = rest.split_first_mut() else { return };
        *turn += 1;
        one.turn = *turn;
        let mut between = || {
            if pace.is_due() {
                let mut others: Vec<&mut Running<T>> = before.iter_mut().chain(after.iter_mut()).collect();
                decode(&mut others, pace, on_event);
            }
        };
        one.step(on_event, Some(&mut between));
    }
}

impl Pace {
    /// Whether answers have waited for the stall time.
    fn is_due(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() >= self.stall)
    }

    /// Records how long the answers waited. Called when they take a step.
    fn begin(&mut self) {
        if let Some(last) = self.last.take() {
            self.stats.stalled = self.stats.stalled.max(last.elapsed());
        }
    }

    /// Counts a call that appended `tokens` tokens to `answers` answers.
    fn count(&mut self, answers: usize, tokens: usize) {
        self.stats.steps += 1;
        self.stats.tokens += tokens as u64;
        self.stats.most = self.stats.most.max(answers);
    }
}

impl<T> Running<T> {
    /// Whether prefill is complete, so that the generation decodes.
    fn answers(&self) -> bool {
        self.generation.as_ref().is_some_and(|generation| !generation.reads())
    }

    /// Takes a step alone: reads a chunk of the prompt, or chooses the next token.
    fn step(&mut self, on_event: &OnEvent<'_, T>, between: Option<&mut dyn FnMut()>) {
        let Running { tag, session, sampler, generation, end, .. } = self;
        let (Some(going), Some(sampler)) = (generation.as_mut(), sampler.as_mut()) else { return };
        let mut on_event = |event| (*on_event.borrow_mut())(tag, event);
        let mut listener = Listener::new(&mut on_event);
        if let Some(between) = between {
            listener = listener.with_between(between);
        }
        *end = match going.step(session, sampler, &mut listener) {
            Ok(false) => return,
            Ok(true) => generation.take().map(|of| Ok(of.outcome())),
            Err(e) => Some(Err(e)),
        };
        *generation = None;
    }
}

/// Takes a step of all answers that decode. First, shared calls compute the pending tokens of those that can
/// join. Then each answer chooses its next token. If a shared call fails, its answers continue one by one, so
/// only those that fail alone end with an error.
fn decode<T>(running: &mut [&mut Running<T>], pace: &mut Pace, on_event: &OnEvent<'_, T>) {
    let mut answers: Vec<&mut Running<T>> =
        running.iter_mut().filter(|one| one.answers()).map(|one| &mut **one).collect();
    if answers.is_empty() {
        return;
    }
    pace.begin();
    let joins = |one: &mut Running<T>| one.generation.as_mut().is_some_and(|g| g.joining().is_some());
    let mut joining: Vec<(usize, &mut Running<T>)> = (answers.iter_mut())
        .filter_map(|one| joins(one).then(|| (one.session.most_together(), &mut **one)))
        .filter(|(most, _)| *most > 1)
        .collect();
    let limit = joining.iter().map(|(most, _)| *most).min().unwrap_or(1);
    // Each call reads all weights, so we make as few calls as possible, of nearly equal size.
    let calls = joining.len().div_ceil(limit).max(1);
    let each = joining.len().div_ceil(calls).max(1);
    for group in joining.chunks_mut(each).filter(|group| group.len() > 1) {
        match together(group) {
            Ok(0) => {}
            Ok(answers) => pace.count(answers, answers),
            Err(e) => log::debug!("a step of {} answers: {e}; they go on one by one", group.len()),
        }
    }
    drop(joining);
    for one in &mut answers {
        if let Some(alone) = one.generation.as_ref().map(Generation::pending).filter(|&n| n > 0) {
            pace.count(1, alone);
        }
        one.step(on_event, None);
    }
    pace.last = answers.iter().any(|one| one.answers()).then(Instant::now);
}

/// Appends one token to each answer in one call, skipping cancelled ones. Returns how many answers took part.
fn together<T>(group: &mut [(usize, &mut Running<T>)]) -> Result<usize> {
    let start = Instant::now();
    let (mut turns, mut nexts, mut guided, mut joined) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (_, Running { session, generation, .. }) in group.iter_mut() {
        let of = generation.as_mut().and_then(Generation::joining);
        joined.push(of.is_some());
        let Some(of) = of else { continue };
        turns.push(Turn { session, token: of.token, want: of.want, cancel: of.cancel });
        nexts.push(of.next);
        guided.extend(of.guided);
    }
    Guided::beside(&mut guided, || together::step(&mut turns, &mut |i, step| nexts[i].keep(step)))?;
    drop((turns, nexts, guided));
    let seconds = start.elapsed().as_secs_f64();
    let all = group.iter_mut().zip(&joined).filter(|(_, joined)| **joined);
    for ((_, Running { session, generation, .. }), _) in all {
        if let Some(generation) = generation {
            generation.joined(session, seconds);
        }
    }
    Ok(joined.into_iter().filter(|joined| *joined).count())
}
