//! A request with a session. It generates its answers one after another and sends updates to its client.

use crate::answer::{Finish, Piece, Update, Usage, broken};
use crate::logprobs::Likely;
use crate::pool::Lease;
use crate::queue::Turn;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::service::Service;
use dollop::internal::Batch;
use dollop::tools::{Format, Parser};
use dollop::{Event, GenerateOptions, Outcome, Result, Session, StopReason};
use serde_json::Value as Json;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// A request with a session. The channel of its updates is unbounded, so a slow client does not block the
/// session. The context bounds the number of updates.
pub struct Work {
    service: Arc<Service>,
    request: Request,
    prompts: Vec<Vec<u32>>,
    /// The format of tool calls, and the tools.
    calls: Option<(Format, Json)>,
    sender: UnboundedSender<Update>,
    lease: Lease,
    turn: Turn,
    usage: Usage,
    /// Index of the current answer, counted over all prompts.
    choice: usize,
    reader: Reader,
    likely: Vec<Likely>,
}

/// Separates tool calls from an answer's text.
#[derive(Default)]
struct Reader {
    parser: Option<Parser>,
    /// Whether the answer has a complete call.
    called: bool,
}

impl Work {
    /// Takes a session for the request.
    ///
    /// # Errors
    /// 500 if no session is free. That would be a bug: a [`Turn`] guarantees a session.
    pub fn new(
        service: Arc<Service>,
        request: Request,
        prompts: Vec<Vec<u32>>,
        calls: Option<(Format, Json)>,
        (sender, turn): (UnboundedSender<Update>, Turn),
    ) -> Result<Work, Refusal> {
        let first = prompts.first().ok_or_else(no_session)?;
        let mut lease = service.pool.take(first).ok_or_else(no_session)?;
        if let Some(prefixes) = &service.prefixes {
            lease.warm(first, prefixes);
        }
        let (usage, choice, reader, likely) = (Usage::default(), 0, Reader::default(), Vec::new());
        Ok(Work { service, request, prompts, calls, sender, lease, turn, usage, choice, reader, likely })
    }

    /// Hands the request to the scheduler.
    pub fn schedule(self) {
        let service = self.service.clone();
        service.scheduler.begin(self);
    }

    fn prompt(&self) -> &[u32] {
        &self.prompts[self.choice / self.request.choices.max(1)]
    }

    /// Starts the current answer in the batch.
    pub fn begin(mut self, batch: &mut Batch<Work>) {
        let prompt = self.prompt().to_vec();
        let Some(session) = self.lease.begin(&prompt) else { return self.over(Err(no_session())) };
        let options = self.options(&prompt, session.context() - prompt.len());
        let parser = self.calls.as_ref().map(|(format, tools)| Parser::new(*format, tools));
        (self.reader, self.likely) = (Reader { parser, called: false }, Vec::new());
        batch.begin(self, session, &prompt, &options);
    }

    fn options(&self, prompt: &[u32], room: usize) -> GenerateOptions {
        debug_assert!(!prompt.is_empty());
        let request = &self.request;
        let sampling = request.sampling.clone();
        let seed = sampling.seed.wrapping_add((self.choice) as u64);
        let mut options = GenerateOptions::default()
            .with_max_tokens(request.max_tokens.unwrap_or(room).min(room))
            .with_sampling(sampling.with_seed(seed))
            .with_stop(&request.stop)
            .with_cancel(self.turn.cancel.clone());
        (options.ignore_eos, options.logprobs) = (request.ignore_eos, request.logprobs);
        options.constraint.clone_from(&request.constraint);
        options.tools = self.calls.as_ref().map(|(format, _)| *format);
        options
    }

    /// Forwards an event of the generation to the client.
    pub fn hear(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Token { text, .. } => {
                self.service.live.token();
                self.text(text)
            }
            Event::Rest { text } => self.text(text),
            Event::Logprobs { id, logprob, top } => {
                if let Ok(tokenizer) = self.service.engine.tokenizer() {
                    self.likely.push(Likely::new(tokenizer, (id, logprob), &top));
                }
                ControlFlow::Continue(())
            }
            Event::Reasoning { text, .. } => {
                self.service.live.token();
                self.usage.reasoning += 1;
                // Only tokens of the answer are reported.
                self.likely.pop();
                self.tell(Piece::Reasoning(text))
            }
            Event::Prefill { .. } => self.send(Update::Begun),
            Event::GpuLost { note } => {
                log::warn!("{note}");
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// Finishes the current answer. Returns the work if another answer follows.
    pub fn ended(mut self, session: Session, outcome: Result<Outcome>) -> Option<Work> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(e) => {
                self.lease.end(session, None);
                self.over(Err(e.into()));
                return None;
            }
        };
        let cancelled = outcome.stop == StopReason::Cancelled;
        let prompt = self.prompts[self.choice / self.request.choices.max(1)].as_slice();
        self.lease.end(session, Some(prompt).filter(|_| !cancelled));
        if self.choice.is_multiple_of(self.request.choices) {
            self.usage.prompt += outcome.prompt_tokens;
            self.usage.cached += outcome.reused_tokens;
        }
        self.usage.output += outcome.tokens.len();
        self.usage.prefill_s += outcome.prefill_s;
        self.usage.decode_s += outcome.decode_s;
        if cancelled {
            if self.sender.is_closed() {
                self.service.metrics.cancelled();
            }
            self.over(Err(Refusal::stopping()));
            return None;
        }
        self.end_text();
        // Tokens of a stop string are not part of the answer.
        if outcome.stop != StopReason::StopString {
            let _ = self.tell_likely();
        }
        let finish = self.finish(&outcome);
        let _ = self.sender.send(Update::Done(self.choice, finish));
        self.choice += 1;
        if self.choice == self.prompts.len() * self.request.choices {
            self.over(Ok(()));
            return None;
        }
        Some(self)
    }

    /// Fails the request after a panic in the scheduler.
    pub fn broken(mut self, session: Session) {
        self.lease.broken(session);
        self.over(Err(broken()));
    }

    fn over(self, result: Result<(), Refusal>) {
        let Work { service, sender, lease, turn, usage, .. } = self;
        // Free the session before sending the last update: the client may send its next request at once.
        drop(lease);
        drop(turn);
        service.metrics.tokens(&usage);
        let update = match result {
            Ok(()) => Update::End(usage),
            Err(refusal) => Update::Failed(refusal),
        };
        // Sending fails if the client has disconnected, which does not matter here.
        let _ = sender.send(update);
    }

    fn send(&self, update: Update) -> ControlFlow<()> {
        match self.sender.send(update) {
            Ok(()) => ControlFlow::Continue(()),
            // The client has disconnected.
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Sends a piece, unless its text is empty.
    fn tell(&self, piece: Piece) -> ControlFlow<()> {
        match &piece {
            Piece::Text(text) | Piece::Reasoning(text) | Piece::Arguments(text) if text.is_empty() => {
                ControlFlow::Continue(())
            }
            _ => self.send(Update::Piece(self.choice, piece)),
        }
    }

    fn finish(&self, outcome: &Outcome) -> Finish {
        match outcome.stop {
            StopReason::EndOfTurn if self.reader.called => Finish::Calls,
            StopReason::StopString => Finish::Stop(self.stop_string(outcome)),
            StopReason::MaxTokens | StopReason::ContextFull => Finish::Length,
            StopReason::EndOfTurn | StopReason::Cancelled => Finish::Turn,
        }
    }

    /// Finds the stop string that ended the answer: the one that follows the answer's text.
    fn stop_string(&self, outcome: &Outcome) -> Option<String> {
        if let [only] = &self.request.stop[..] {
            return Some(only.clone());
        }
        let said = self.service.engine.tokenizer().ok()?.decode(&outcome.tokens, false);
        let met = |stop: &&String| said.contains(&format!("{}{stop}", outcome.text));
        self.request.stop.iter().find(met).cloned()
    }

    /// Sends the log probabilities of the tokens since the last piece.
    fn tell_likely(&mut self) -> ControlFlow<()> {
        match std::mem::take(&mut self.likely) {
            tokens if tokens.is_empty() => ControlFlow::Continue(()),
            tokens => self.send(Update::Piece(self.choice, Piece::Likely(tokens))),
        }
    }

    fn text(&mut self, text: String) -> ControlFlow<()> {
        if !text.is_empty() {
            self.tell_likely()?;
        }
        match &mut self.reader.parser {
            None => self.tell(Piece::Text(text)),
            Some(parser) => {
                let pieces = parser.push(&text);
                self.read(pieces)
            }
        }
    }

    /// Sends the pieces that the parser still holds at the end of the text.
    fn end_text(&mut self) {
        if let Some(mut parser) = self.reader.parser.take() {
            // The generation is over, so a disconnected client does not matter here.
            let _ = self.read(parser.finish());
        }
    }

    fn read(&mut self, pieces: Vec<dollop::tools::Piece>) -> ControlFlow<()> {
        use dollop::tools::Piece as Read;
        for piece in pieces {
            let piece = match piece {
                Read::Text(text) => Piece::Text(text),
                Read::Call { name } => Piece::Call { id: self.service.id("call_"), name },
                Read::Arguments(text) => Piece::Arguments(text),
                Read::Abandoned { text } => Piece::Abandoned(text),
                Read::End => {
                    self.reader.called = true;
                    continue;
                }
                _ => continue,
            };
            self.tell(piece)?;
        }
        ControlFlow::Continue(())
    }
}

fn no_session() -> Refusal {
    Refusal::internal("no session is free: this is a bug in the server")
}
