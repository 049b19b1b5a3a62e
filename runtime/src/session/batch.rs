//! Generations that go on together: those that decode take a step in one call, and prompts are read between the steps.

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

/// Time for which answers wait for a prompt at most, beside that of one of its layers.
const STALL: Duration = Duration::from_millis(200);

/// Generations of one engine that go on together (continuous batching). They may begin and end at any time.
///
/// A step appends a token to every answer, all in one call: a weight, and an expert that was read, then serves all of them.
/// Prompts are read in chunks, one prompt after another in turns. Between two layers of a chunk the answers take a step
/// wherever they have waited for the stall time, so none waits longer than that and a layer of a chunk.
///
/// With exact precision an answer is the same, byte for byte, as that of [`Session::generate`]: nothing of it depends on what else
/// runs. With adaptive precision it does, as the cache of experts is shared. Where a GPU computes, sessions take their steps
/// one after another, and prompts are not interrupted within a chunk.
///
/// `T` is the caller's, to know a generation by.
pub struct Batch<T> {
    engine: Engine,
    running: Vec<Running<T>>,
    /// Prompts whose turn it was.
    turn: u64,
    pace: Pace,
}

/// A generation that has ended, with its session.
pub struct Ended<T> {
    /// What it was begun with.
    pub tag: T,
    /// The session, which holds what was appended.
    pub session: Session,
    /// What came of it.
    pub outcome: Result<Outcome>,
}

/// What a [`Batch`] has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BatchStats {
    /// Calls that appended tokens to answers.
    pub steps: u64,
    /// Tokens that these appended: divided by `steps`, how many answers went on in one call.
    pub tokens: u64,
    /// The most answers that went on in one call.
    pub most: usize,
    /// The longest time that answers waited for prompts.
    pub stalled: Duration,
}

struct Running<T> {
    tag: T,
    session: Session,
    sampler: Option<Sampler>,
    generation: Option<Generation>,
    end: Option<Result<Outcome>>,
    /// When a chunk of its prompt was last read.
    turn: u64,
}

/// Time and numbers of steps.
struct Pace {
    stall: Duration,
    /// When answers that wait now took their last step.
    last: Option<Instant>,
    stats: BatchStats,
}

/// What hears the events of all generations.
type Hears<'a, T> = RefCell<&'a mut dyn FnMut(&mut T, Event) -> ControlFlow<()>>;

impl<T> Batch<T> {
    /// No generations yet.
    pub fn new(engine: &Engine) -> Batch<T> {
        let pace = Pace { stall: STALL, last: None, stats: BatchStats::default() };
        Batch { engine: engine.clone(), running: Vec::new(), turn: 0, pace }
    }

    /// With another stall time than 200 ms: shorter steps come more often, and prompts take longer.
    #[must_use]
    pub fn with_stall(mut self, stall: Duration) -> Self {
        self.pace.stall = stall;
        self
    }

    /// Begins a generation as [`Session::generate`] does. What is wrong with it comes out of the next [`Batch::step`].
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

    /// Generations that have not come out yet.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// What it has done.
    pub fn stats(&self) -> BatchStats {
        self.pace.stats
    }

    /// Appends a token to every answer and reads a chunk of one prompt; returns what has ended. `on_event` hears what happens, in
    /// order for each generation, and may end one ([`Reply`]). What fails ends by itself.
    pub fn step<R: Reply>(&mut self, on_event: &mut dyn FnMut(&mut T, Event) -> R) -> Vec<Ended<T>> {
        let mut on_event = |tag: &mut T, event| on_event(tag, event).flow();
        let hears: Hears<'_, T> = RefCell::new(&mut on_event);
        decode(&mut self.running.iter_mut().collect::<Vec<_>>(), &mut self.pace, &hears);
        self.read(&hears);
        let ended = self.running.extract_if(.., |one| one.end.is_some());
        let ended = ended.map(|one| Ended {
            tag: one.tag,
            session: one.session,
            outcome: one.end.unwrap_or(Err(Error::Cancelled)),
        });
        ended.collect()
    }

    /// Ends all of them where they are, as cancelling does. The sessions are usable, also after a panic of [`Batch::step`].
    pub fn clear(&mut self) -> Vec<Ended<T>> {
        self.pace.last = None;
        let ended = self.running.drain(..);
        ended
            .map(|one| Ended { tag: one.tag, session: one.session, outcome: Err(Error::Cancelled) })
            .collect()
    }

    /// Reads a chunk of the prompt whose turn it is, and lets the others take steps between its layers.
    fn read(&mut self, hears: &Hears<'_, T>) {
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
                decode(&mut others, pace, hears);
            }
        };
        one.step(hears, Some(&mut between));
    }
}

impl Pace {
    /// Whether answers have waited long enough.
    fn is_due(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() >= self.stall)
    }

    /// Answers go on.
    fn begin(&mut self) {
        if let Some(last) = self.last.take() {
            self.stats.stalled = self.stats.stalled.max(last.elapsed());
        }
    }

    /// Those of a call have.
    fn count(&mut self, answers: usize, tokens: usize) {
        self.stats.steps += 1;
        self.stats.tokens += tokens as u64;
        self.stats.most = self.stats.most.max(answers);
    }
}

impl<T> Running<T> {
    /// Whether it takes steps beside a prompt that is read.
    fn answers(&self) -> bool {
        self.generation.as_ref().is_some_and(|generation| !generation.reads())
    }

    /// Takes a step alone: a piece of the prompt, or the next token.
    fn step(&mut self, hears: &Hears<'_, T>, between: Option<&mut dyn FnMut()>) {
        let Running { tag, session, sampler, generation, end, .. } = self;
        let (Some(going), Some(sampler)) = (generation.as_mut(), sampler.as_mut()) else { return };
        let mut on_event = |event| (*hears.borrow_mut())(tag, event);
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

/// Takes a step of all that answer: what can be computed in one call first, and the choice of each next token then. A call that fails
/// is taken apart, so that only that fails which fails alone.
fn decode<T>(running: &mut [&mut Running<T>], pace: &mut Pace, hears: &Hears<'_, T>) {
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
    // Calls of nearly equal size: each reads all weights.
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
        one.step(hears, None);
    }
    pace.last = answers.iter().any(|one| one.answers()).then(Instant::now);
}

/// Appends a token to each in one call, but to those that were cancelled meanwhile; to how many.
fn together<T>(group: &mut [(usize, &mut Running<T>)]) -> Result<usize> {
    let start = Instant::now();
    let (mut turns, mut nexts, mut guided, mut joined) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (_, Running { session, generation, .. }) in group.iter_mut() {
        let of = generation.as_mut().and_then(Generation::joining);
        joined.push(of.is_some());
        let Some(of) = of else { continue };
        turns.push(Turn { session, token: of.token, wish: of.wish, cancel: of.cancel });
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
