//! Generation as callers see it: a prompt goes in; events and an outcome come out, through a callback or an
//! iterator.

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
    /// Processes `prompt` and continues it. Reuses the part of the KV cache that matches the prompt's
    /// beginning, and drops the rest. Afterwards, the cache holds the prompt and all generated tokens but the
    /// last. Events go to `on_event`, and its [`Reply`] may end the generation.
    ///
    /// # Errors
    /// `ContextFull` if the prompt does not fit, `Invalid` for an empty prompt or bad options. Cancellation
    /// is no error. The session stays usable after an error.
    pub fn generate<R: Reply>(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        to_end(&mut self.begin(prompt, options)?, on_event)
    }

    /// [`Session::generate`] as an iterator over the events.
    ///
    /// # Errors
    /// As [`Session::generate`]. Errors of computing come from the iterator.
    pub fn stream(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Events<'_>> {
        Ok(Events::new(Box::new(self.begin(prompt, options)?)))
    }

    fn begin(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Continuing<'_>> {
        let mut sampler = self.engine().sampler(options.sampling.clone())?;
        let generation = Generation::new(self, prompt, options, &mut sampler)?;
        Ok(Continuing { session: self, sampler, generation: Some(generation) })
    }
}

/// A generation that runs step by step.
pub(super) trait Steps {
    /// Takes one step; returns the outcome if it was the last. Must not be called after that, nor after an
    /// error.
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>>;
}

/// Takes all steps and passes their events to a callback.
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

/// A generation on a session.
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

/// Iterates over the events of a generation. Returned by [`Chat::stream`](super::Chat::stream) and
/// [`Session::stream`].
///
/// `next` computes on the calling thread until there is an event; nothing runs between calls. Dropping the
/// iterator ends the generation as cancelling does: the tokens so far are kept, and the chat or session can
/// continue at once. After an error, there are no more events.
#[must_use = "nothing is generated until events are asked for"]
pub struct Events<'a> {
    run: Box<dyn Steps + Send + 'a>,
    queue: VecDeque<Event>,
    end: End,
}

/// Whether the generation has ended, and how.
enum End {
    Open,
    Done(Outcome),
    /// An error that was not returned yet.
    Failed(Error),
    Returned,
}

impl<'a> Events<'a> {
    pub(super) fn new(run: Box<dyn Steps + Send + 'a>) -> Events<'a> {
        Events { run, queue: VecDeque::new(), end: End::Open }
    }

    /// The outcome, after the last event was returned.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.end {
            End::Done(outcome) if self.queue.is_empty() => Some(outcome),
            _ => None,
        }
    }

    /// Generates the rest, discards its events, and returns the outcome.
    ///
    /// # Errors
    /// Those of computing; `Cancelled` if the iterator has already returned an error.
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
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            match std::mem::replace(&mut self.end, End::Returned) {
                End::Open => self.end = End::Open,
                End::Failed(e) => return Some(Err(e)),
                over => {
                    self.end = over;
                    return None;
                }
            }
            let mut hear = |event| {
                self.queue.push_back(event);
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
