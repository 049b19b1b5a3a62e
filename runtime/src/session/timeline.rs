//! One timeline: a KV cache, the tokens in it, and how many were ever computed.

use super::engine::{Booking, Engine};
use super::processor::Timeline;
use crate::error::{Error, Result};
use crate::kernels::cpu::MANY;
use crate::model::forward::Want;
use crate::telemetry::CancelToken;

/// The context a session gets unless asked otherwise (or the model's, where that is shorter): enough for a long chat,
/// small enough for a phone.
pub(super) const DEFAULT_CONTEXT: usize = 4096;

/// Tokens of a prompt taken through the layers at once unless asked otherwise.
const DEFAULT_CHUNK: usize = 512;

/// How a [`Session`] is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Positions in the KV cache; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// Tokens of a prompt that pass through the layers together; by default 512. Results do not depend on it.
    pub chunk: Option<usize>,
}

/// One timeline of a model. All its memory is allocated when it is made. Use it from one thread at a time.
pub struct Session {
    engine: Engine,
    state: Timeline,
    tokens: Vec<u32>,
    processed: u64,
    /// Its part of the budget.
    _booking: Booking,
}

impl Engine {
    /// An empty timeline.
    ///
    /// # Errors
    /// `Invalid` for a context of zero or beyond what the model was made for or the budget planned for.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        let (limit, plan) = (self.model().config.context, self.memory_plan());
        // A plan's session is the default one.
        let context = options.context.unwrap_or(plan.context);
        check_context(context, limit)?;
        let chunk = match options.chunk {
            Some(0) => return Err(Error::Invalid("a prefill chunk needs at least one token".into())),
            chunk => chunk.unwrap_or(if plan.is_tight() { plan.chunk } else { DEFAULT_CHUNK }).min(context),
        };
        let chunk = chunk.min(self.processor().longest_chunk());
        let booking = self.book(context, chunk)?;
        let state = self.processor().timeline(self.model(), context, chunk)?;
        let tokens = Vec::with_capacity(context);
        Ok(Session { engine: self.clone(), state, tokens, processed: 0, _booking: booking })
    }
}

/// # Errors
/// `Invalid` for a context of zero or beyond what the model was made for.
pub(super) fn check_context(context: usize, limit: usize) -> Result<()> {
    if context == 0 || context > limit {
        return Err(Error::Invalid(format!("a context of {context} tokens: this model takes 1 to {limit}")));
    }
    Ok(())
}

impl Session {
    /// The model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that the cache holds.
    pub fn context(&self) -> usize {
        self.state.capacity()
    }

    /// Tokens computed since the session was made, whether or not they are still in the cache: what reuse of the cache
    /// saves does not appear here.
    pub fn processed_tokens(&self) -> u64 {
        self.processed
    }

    /// Forgets everything after the first `len` tokens.
    pub fn rewind(&mut self, len: usize) {
        self.tokens.truncate(len);
    }

    /// Appends `tokens` and returns the logits (`[vocab]`, unnormalised log probabilities of the next token) at each.
    ///
    /// # Errors
    /// As [`Session::for_each_logits`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(tokens.len());
        self.for_each_logits(tokens, &mut |_, logits| all.push(logits.to_vec()))?;
        Ok(all)
    }

    /// Appends `tokens` and hands the logits at each to `each`, with the token's index in `tokens`.
    ///
    /// # Errors
    /// `ContextFull` where they do not fit, `Invalid` for a token outside the vocabulary; nothing is appended then.
    pub fn for_each_logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.append(tokens, true, None, &mut |_| (), each)
    }

    /// Appends `tokens` chunk by chunk; `each` gets the logits of all of them or of the last. `progress` hears how many
    /// are done after each chunk. On cancellation the chunks done stay.
    pub(super) fn append(
        &mut self,
        tokens: &[u32],
        all: bool,
        cancel: Option<&CancelToken>,
        progress: &mut dyn FnMut(usize),
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let needed = self.tokens.len() + tokens.len();
        if needed > self.context() {
            return Err(Error::ContextFull { needed, limit: self.context() });
        }
        let vocab = self.engine.model().weights.vocab();
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Invalid(format!("token {bad} is outside the vocabulary of {vocab}")));
        }
        let mut done = 0;
        while done < tokens.len() {
            let rest = &tokens[done..];
            let chunk = &rest[..piece(rest.len(), self.state.chunk())];
            if cancel.is_some_and(CancelToken::is_cancelled) {
                return Err(Error::Cancelled);
            }
            let want = match (all, done + chunk.len() == tokens.len()) {
                (true, _) => Want::All,
                (false, true) => Want::Last,
                (false, false) => Want::Nothing,
            };
            let (engine, pos) = (self.engine.clone(), self.tokens.len());
            engine.processor().forward(
                engine.model(),
                &mut self.state,
                chunk,
                pos,
                want,
                &mut |i, logits| {
                    each(done + i, logits);
                },
            )?;
            self.tokens.extend_from_slice(chunk);
            self.processed += chunk.len() as u64;
            done += chunk.len();
            progress(done);
        }
        Ok(())
    }
}

/// How many of `left` tokens to take at once, where up to `chunk` can be. The last piece of a longer prompt is not left
/// shorter than what counts as many tokens, whose products some processors compute in another precision: so it is the
/// prompt that decides, whatever chunk a budget allows.
fn piece(left: usize, chunk: usize) -> usize {
    let rest = left.saturating_sub(chunk);
    if rest == 0 {
        left
    } else if rest < MANY && chunk >= 2 * MANY {
        left - MANY
    } else {
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_of_many_tokens_is_few() {
        for chunk in [32, 64, 100, 512] {
            for tokens in 1..1200 {
                let (mut left, mut least) = (tokens, tokens);
                while left > 0 {
                    let n = piece(left, chunk);
                    assert!((1..=chunk).contains(&n));
                    (left, least) = (left - n, least.min(n));
                }
                assert!(least >= MANY.min(tokens), "{tokens} tokens in chunks of {chunk}: {least}");
            }
        }
        assert_eq!([piece(10, 4), piece(2, 4)], [4, 2], "a chunk shorter than that is what was asked for");
    }
}
