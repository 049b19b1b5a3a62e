//! Generation as a caller sees it: a prompt in; events, to a callback or one after another, and an outcome out.

use super::event::{Event, GenerateOptions, Outcome, Reply};
use super::generation::Generation;
use super::listener::Listener;
use super::timeline::Session;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::ops::ControlFlow;

impl Session {
    /// Makes the timeline read `prompt` and continues it. Whatever the cache already holds of the prompt's beginning is
    /// reused, the rest of the cache is forgotten; afterwards the cache holds the prompt and all but the last of the
    /// generated tokens. `on_event` hears what happens, and may end it ([`Reply`]).
    ///
    /// # Errors
    /// `ContextFull` where the prompt does not fit, `Invalid` for an empty prompt or bad options. Cancellation is no
    /// error. After an error the session is usable.
    pub fn generate<R: Reply>(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        to_end(&mut self.begin(prompt, options)?, on_event)
    }

    /// [`Session::generate`] as an iterator over its events.
    ///
    /// # Errors
    /// As [`Session::generate`]; those of computing come from the iterator.
    pub fn stream(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Events<'_>> {
        Ok(Events::new(Box::new(self.begin(prompt, options)?)))
    }

    fn begin(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Continuing<'_>> {
        let mut sampler = self.engine().sampler(options.sampling.clone())?;
        let generation = Generation::new(self, prompt, options, &mut sampler)?;
        Ok(Continuing { session: self, sampler, generation: Some(generation) })
    }
}

/// What goes on step by step until there is an outcome.
pub(super) trait Steps {
    /// One step; the outcome, where it was the last. Not to be called again after that, or after an error.
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>>;
}

/// Takes all steps, of which a callback hears.
pub(super) fn to_end<R: Reply>(
    steps: &mut dyn Steps,
    on_event: &mut dyn FnMut(Event) -> R,
) -> Result<Outcome> {
    let mut on_event = |event| on_event(event).flow();
    let mut listener = Listener::new(&mut on_event);
    loop {
        if let Some(outcome) = steps.step(&mut listener)? {
            return Ok(outcome);
        }
    }
}

/// A session that continues a prompt.
struct Continuing<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    generation: Option<Generation>,
}

impl Steps for Continuing<'_> {
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>> {
        let Some(generation) = &mut self.generation else { return Err(Error::Cancelled) };
        let over = generation.step(self.session, &mut self.sampler, listener)?;
        Ok(self.generation.take_if(|_| over).map(Generation::outcome))
    }
}

/// The events of a generation, one after another: [`Chat::stream`](super::Chat::stream), [`Session::stream`].
///
/// Each is computed when it is asked for, on the thread that asks; nothing is computed meanwhile. Dropping the iterator ends the
/// generation as cancelling does: what was generated so far stays, and the chat or session can go on at once. After an error there
/// are no more events.
#[must_use = "nothing is generated until events are asked for"]
pub struct Events<'a> {
    run: Box<dyn Steps + Send + 'a>,
    heard: VecDeque<Event>,
    end: End,
}

/// Whether it has ended, and with what.
enum End {
    Open,
    Done(Outcome),
    /// An error that is not returned yet.
    Failed(Error),
    Told,
}

impl<'a> Events<'a> {
    pub(super) fn new(run: Box<dyn Steps + Send + 'a>) -> Events<'a> {
        Events { run, heard: VecDeque::new(), end: End::Open }
    }

    /// What came of it, once the last event was returned.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.end {
            End::Done(outcome) if self.heard.is_empty() => Some(outcome),
            _ => None,
        }
    }

    /// Generates the rest, whose events nobody sees, and returns what came of it all.
    ///
    /// # Errors
    /// Those of computing; `Cancelled` where the iterator has returned an error already.
    pub fn finish(mut self) -> Result<Outcome> {
        for event in &mut self {
            event?;
        }
        match self.end {
            End::Done(outcome) => Ok(outcome),
            _ => Err(Error::Cancelled),
        }
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Some(Ok(event));
            }
            match std::mem::replace(&mut self.end, End::Told) {
                End::Open => self.end = End::Open,
                End::Failed(e) => return Some(Err(e)),
                over => {
                    self.end = over;
                    return None;
                }
            }
            let mut hear = |event| {
                self.heard.push_back(event);
                ControlFlow::Continue(())
            };
            let mut listener = Listener::new(&mut hear);
            self.end = match self.run.step(&mut listener) {
                Ok(None) => End::Open,
                Ok(Some(outcome)) => End::Done(outcome),
                Err(e) => End::Failed(e),
            };
        }
    }
}

impl FusedIterator for Events<'_> {}
