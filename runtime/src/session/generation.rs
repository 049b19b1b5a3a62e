//! A generation under way: a piece of the prompt a step, then a token a step. Callbacks and iterators take the same steps.

use super::event::{Event, GenerateOptions, Outcome, StopReason};
use super::guided::Guided;
use super::timeline::{Session, Step, Wish};
use super::wording::Wording;
use crate::error::{Error, Result};
use crate::kernels::MAX_BEST;
use crate::sampler::Sampler;
use std::ops::ControlFlow;
use std::time::Instant;

/// Moves the quality against the time that a token took, as a multiple of the time it should take. Half a bit is about
/// an eighth of a token's bytes; small steps do not swing.
fn steer(streamer: &crate::sched::Streamer, taken: f64) {
    let step = if taken > 1.05 {
        -0.1
    } else if taken < 0.9 {
        0.05
    } else {
        0.0
    };
    if step != 0.0 {
        streamer.set_quality(streamer.quality() + step);
    }
}

/// What hears events, and may end them.
pub(super) struct Listener<'a> {
    on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    stopped: bool,
}

impl<'a> Listener<'a> {
    pub(super) fn new(on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Listener<'a> {
        Listener { on_event, stopped: false }
    }

    /// # Errors
    /// `Cancelled` from the first time on that the answer is to stop.
    fn tell(&mut self, event: Event) -> Result<()> {
        self.stopped = self.stopped || (self.on_event)(event).is_break();
        if self.stopped { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What the next token is chosen from: as little as the sampler needs, for a device would have to send all of it back.
struct Next {
    wish: Wish,
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
}

impl Next {
    /// What a constraint allows may be none of the likeliest.
    fn new(sampler: &Sampler, guided: bool) -> Next {
        let enough = sampler.enough().filter(|&k| k <= MAX_BEST && !guided);
        let wish = enough.map_or(Wish::Last, Wish::Best);
        Next { wish, logits: Vec::new(), best: Vec::new() }
    }

    fn hear(&mut self, step: Step, listener: &mut Listener) -> Result<()> {
        match step {
            Step::Read(_) => {}
            Step::Logits(_, last) => last.clone_into(&mut self.logits),
            Step::Best(best) => best.clone_into(&mut self.best),
            Step::Moved(why) => listener.tell(Event::GpuLost { note: why.to_owned() })?,
        }
        Ok(())
    }

    fn sample(&mut self, sampler: &mut Sampler) -> u32 {
        match self.wish {
            Wish::Best(_) => sampler.sample_best(&self.best),
            Wish::Nothing | Wish::All | Wish::Last => sampler.sample(&mut self.logits),
        }
    }
}

/// A prompt that is read, and then continued.
pub(super) struct Generation {
    options: GenerateOptions,
    /// What of the prompt the cache did not hold, and how much of that is read.
    fresh: Vec<u32>,
    read: usize,
    next: Next,
    /// The last token, which the cache does not hold yet, and those that a constraint forced behind it.
    pending: Vec<u32>,
    guided: Option<Guided>,
    wording: Wording,
    /// Whether the last step was taken.
    over: bool,
    outcome: Outcome,
}

impl Generation {
    /// Forgets what `session` holds and `prompt` does not begin with. The sampler begins anew behind the prompt.
    ///
    /// # Errors
    /// `ContextFull` where the prompt does not fit, `Invalid` for an empty prompt, a token outside the vocabulary or a constraint that
    /// does not compile.
    pub(super) fn new(
        session: &mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
        sampler: &mut Sampler,
    ) -> Result<Generation> {
        if prompt.is_empty() {
            return Err(Error::Invalid("the prompt is empty: there is nothing to continue".into()));
        }
        if prompt.len() > session.context() {
            return Err(Error::ContextFull { needed: prompt.len(), limit: session.context() });
        }
        session.check_vocabulary(prompt)?;
        let guided = Guided::new(session.engine(), options)?;
        // The last prompt token is always computed: its logits are where the answer begins.
        let same = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let reused = session.rewind(same.min(prompt.len() - 1));
        log::debug!("a prompt of {} tokens, {reused} of them in the cache", prompt.len());
        // What is to be computed again is read as a part of the prompt.
        session.rewind(reused);
        session.mark();
        // The prompt is all of the text: a context that slid has another beginning than before.
        sampler.restart();
        prompt.iter().for_each(|&t| sampler.accept(t));
        Ok(Generation {
            options: options.clone(),
            fresh: prompt[reused..].to_vec(),
            read: 0,
            next: Next::new(sampler, guided.is_some()),
            pending: Vec::new(),
            guided,
            wording: Wording::new(session.engine().tokenizer().ok(), prompt, options),
            over: false,
            outcome: Outcome { prompt_tokens: prompt.len(), reused_tokens: reused, ..Outcome::default() },
        })
    }

    /// What it has to obey, for the part of the answer that comes next.
    pub(super) fn guided(&mut self) -> Option<Guided> {
        self.guided.take()
    }

    /// Obeys what the part of the answer before obeyed, and goes on there.
    pub(super) fn follow(&mut self, guided: Option<Guided>) {
        if guided.is_some() {
            (self.guided, self.next.wish) = (guided, Wish::Last);
        }
    }

    /// One step; whether it was the last. Cancellation is no error.
    ///
    /// # Errors
    /// Those of computing. The session is usable after them.
    pub(super) fn step(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<bool> {
        let (start, prompt) = (Instant::now(), self.read < self.fresh.len());
        let stop = match prompt {
            true => self.read_on(session, listener).map(|()| None),
            false => self.say(session, sampler, listener),
        };
        let seconds = start.elapsed().as_secs_f64();
        match prompt {
            true => self.outcome.prefill_s += seconds,
            false => self.outcome.decode_s += seconds,
        }
        let stop = match stop {
            Err(Error::Cancelled) => StopReason::Cancelled,
            other => match other? {
                Some(stop) => stop,
                None => return Ok(false),
            },
        };
        (self.outcome.stop, self.over) = (stop, true);
        if stop != StopReason::StopString {
            let rest = self.wording.rest();
            if !rest.is_empty() && !listener.stopped {
                // It is over whatever the answer is.
                let _ = listener.tell(Event::Rest { text: rest });
            }
        }
        Ok(true)
    }

    /// What came of it, as far as it went.
    pub(super) fn outcome(mut self) -> Outcome {
        if !self.over {
            self.wording.rest();
        }
        Outcome { text: self.wording.text(), ..self.outcome }
    }

    /// Reads the next piece of the prompt.
    fn read_on(&mut self, session: &mut Session, listener: &mut Listener) -> Result<()> {
        let (before, total) = (self.read, self.fresh.len());
        let end = before + session.piece(total - before);
        let wish = if end == total { self.next.wish } else { Wish::Nothing };
        let (next, cancel) = (&mut self.next, Some(&self.options.cancel));
        session.append(&self.fresh[before..end], wish, cancel, &mut |step| {
            if let Step::Read(done) = step {
                listener.tell(Event::Prefill { done: before + done, total })?;
            }
            next.hear(step, listener)
        })?;
        self.read = end;
        if end == total {
            session.mark();
        }
        Ok(())
    }

    /// Appends what is not appended yet, and chooses and shows the next token, with those that must follow it; why it is the last, if it
    /// is.
    fn say(
        &mut self,
        session: &mut Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Option<StopReason>> {
        self.append(session, listener)?;
        if self.outcome.tokens.len() == self.options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if self.options.cancel.is_cancelled() {
            return Ok(Some(StopReason::Cancelled));
        }
        let mut ids = self.forced();
        if ids.is_empty() {
            ids.push(self.choose(sampler)?);
        }
        while !ids.is_empty() {
            for id in ids {
                let stop = self.take(id, session, sampler, listener)?;
                if stop.is_some() {
                    return Ok(stop);
                }
            }
            let hurried = self.guided.as_ref().is_some_and(Guided::is_hurried);
            ids = if hurried { self.forced() } else { Vec::new() };
        }
        Ok(None)
    }

    /// Appends the last token, and those that were forced behind it.
    fn append(&mut self, session: &mut Session, listener: &mut Listener) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let (start, options, next) = (Instant::now(), &self.options, &mut self.next);
        let mut append = || {
            session.append(&pending, next.wish, Some(&options.cancel), &mut |step| next.hear(step, listener))
        };
        match &mut self.guided {
            Some(guided) => guided.beside(self.wording.answers(), append)?,
            None => append()?,
        }
        if let (Some(target), Some(streamer)) = (options.target_tps, session.engine().streamer()) {
            steer(streamer, target * start.elapsed().as_secs_f64() / pending.len() as f64);
        }
        Ok(())
    }

    /// Tokens that the constraint leaves no choice about.
    fn forced(&mut self) -> Vec<u32> {
        let answers = self.wording.answers();
        let forced = self.guided.as_mut().map_or_else(Vec::new, |guided| guided.forced(answers));
        self.outcome.forced_tokens += forced.len();
        forced
    }

    fn choose(&mut self, sampler: &mut Sampler) -> Result<u32> {
        match &mut self.guided {
            Some(guided) => guided.choose(&mut self.next.logits, sampler, self.wording.answers()),
            None => Ok(self.next.sample(sampler)),
        }
    }

    /// Makes a token part of the answer; why it is the last, if it is.
    fn take(
        &mut self,
        id: u32,
        session: &Session,
        sampler: &mut Sampler,
        listener: &mut Listener,
    ) -> Result<Option<StopReason>> {
        let (options, outcome) = (&self.options, &mut self.outcome);
        // An answer that obeys and has ended cannot go on.
        let ends = !options.ignore_eos || self.guided.is_some();
        if ends && session.engine().special_tokens().ends_turn(id) {
            return Ok(Some(StopReason::EndOfTurn));
        }
        if let Some(guided) = &mut self.guided {
            guided.take(id, self.wording.answers())?;
        }
        sampler.accept(id);
        outcome.tokens.push(id);
        let (event, met) = self.wording.hear(id, outcome);
        let heard = listener.tell(event);
        if met {
            return Ok(Some(StopReason::StopString));
        }
        heard?;
        if self.guided.as_ref().is_some_and(Guided::is_over) {
            return Ok(Some(StopReason::EndOfTurn));
        }
        if outcome.tokens.len() == options.max_tokens {
            return Ok(Some(StopReason::MaxTokens));
        }
        if session.tokens().len() + self.pending.len() == session.context() {
            return Ok(Some(StopReason::ContextFull));
        }
        self.pending.push(id);
        Ok(None)
    }
}
