//! A session: a KV cache, the tokens in it, and a counter of computed tokens.

use super::engine::Engine;
use super::failover::{Booking, Computing};
use super::plan::CHUNK;
use super::processor::{Gone, Location, Part, Timeline};
use crate::error::{Error, Result};
use crate::kernels::MANY;
use crate::kernels::MAX_BEST;
use crate::model::forward::{Passing, Want};
use crate::telemetry::CancelToken;

/// The default context of a session, unless the model's is shorter: enough for a long chat, small enough for
/// a phone.
pub(super) const DEFAULT_CONTEXT: usize = 4096;

/// Options for creating a [`Session`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Positions in the KV cache; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// The prefill chunk, in tokens; by default 512, or what the plan of a budget says. Results do not depend
    /// on it.
    pub chunk: Option<usize>,
}

impl SessionOptions {
    /// Sets the positions in the KV cache.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sets the prefill chunk, in tokens.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = Some(tokens);
        self
    }
}

/// A sequence of tokens with its KV cache. All its memory is allocated when it is created. Only one thread
/// may use it at a time.
pub struct Session {
    pub(super) engine: Engine,
    pub(super) state: Box<dyn Timeline>,
    pub(super) tokens: Vec<u32>,
    /// How many of `tokens` are in the cache: all, unless some were lost with a device and must be computed
    /// again.
    pub(super) held: usize,
    pub(super) processed: u64,
    /// Its memory in the budget.
    booking: Option<Booking>,
}

/// A progress report or result of [`Session::append`].
pub(super) enum Step<'a> {
    /// This many tokens are done, or an equal share of the work.
    Read(usize),
    /// The logits of a token, by its index.
    Logits(usize, &'a [f32]),
    /// The greatest logits of the last token, with their token ids.
    Best(&'a [(u32, f32)]),
    /// A layer is done. Other timelines may compute before the next one.
    Layer,
    /// The GPU failed, for this reason in one line. The CPU continues, after computing the lost part again.
    Moved(&'a str),
}

/// Receives the steps of an append. An error ends it.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

impl Engine {
    /// Creates an empty session.
    ///
    /// # Errors
    /// `Invalid` for a context of zero, or beyond what the model supports or the budget was planned for.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        let (limit, plan) = (self.model().spec.context, self.memory_plan());
        // The budget was planned for this context.
        let context = options.context.unwrap_or(plan.context);
        check_context(context, limit)?;
        let chunk = match options.chunk {
            Some(0) => return Err(Error::Invalid("a prefill chunk needs at least one token".into())),
            chunk => chunk.unwrap_or(if plan.is_tight() { plan.chunk } else { CHUNK }).min(context),
        };
        let on = if self.lost().is_some() { self.processors().take_over()? } else { self.processors().now() };
        let (booking, state) = match place(on, context, chunk) {
            // The device failed, and this is the first call to see it. If it is only out of memory for one
            // more session, the open ones continue on it.
            Err(Error::Device(why)) if on.processor.failed() => {
                self.processors().lose(&why);
                place(self.processors().take_over()?, context, chunk)?
            }
            other => other?,
        };
        let (tokens, booking) = (Vec::with_capacity(context), Some(booking));
        Ok(Session { engine: self.clone(), state, tokens, held: 0, processed: 0, booking })
    }
}

/// Reserves memory in the budget and allocates a timeline.
fn place(on: &Computing, context: usize, chunk: usize) -> Result<(Booking, Box<dyn Timeline>)> {
    let chunk = chunk.min(on.processor.longest_chunk());
    let booking = on.book(context, chunk)?;
    Ok((booking, on.processor.timeline(&on.model, context, chunk)?))
}

/// # Errors
/// `Invalid` for a context of zero or beyond what the model supports.
pub(super) fn check_context(context: usize, limit: usize) -> Result<()> {
    if context == 0 || context > limit {
        return Err(Error::Invalid(format!("a context of {context} tokens: this model takes 1 to {limit}")));
    }
    Ok(())
}

impl Session {
    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tokens so far. After a GPU failed, this includes those that were lost with its cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that the KV cache can hold.
    pub fn context(&self) -> usize {
        self.state.capacity()
    }

    /// Tokens computed since the session was created, even if they have left the cache. Reused tokens do not
    /// count.
    #[doc(hidden)]
    pub fn processed_tokens(&self) -> u64 {
        self.processed
    }

    /// Drops everything after the first `len` tokens. Returns how many of these are still computed; the
    /// others are computed again before the next token.
    ///
    /// A layer with a KV cache for all positions keeps all `len`. A sliding-window layer can go back as far
    /// as its cache reaches, or to where one of the last turns began or ended. A recurrent layer can go back
    /// to marks: the same places, and one every 256 tokens.
    pub fn rewind(&mut self, len: usize) -> usize {
        self.tokens.truncate(len);
        self.held = self.state.rewind(self.held.min(len));
        self.held
    }

    /// Appends `tokens` and returns the logits after each (`[vocab]`, unnormalised log probabilities of the
    /// next token).
    ///
    /// # Errors
    /// As [`Session::for_each_logits`].
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(tokens.len());
        self.for_each_logits(tokens, &mut |_, logits| all.push(logits.to_vec()))?;
        Ok(all)
    }

    /// Appends `tokens` and returns the logits after the last one. The output head is computed for that
    /// position only.
    ///
    /// # Errors
    /// As [`Session::for_each_logits`]; `Invalid` for no tokens.
    pub fn last_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::Invalid("logits after no tokens: there is no last one".into()));
        }
        let mut last = Vec::new();
        self.append(tokens, Want::Last, None, &mut |step| {
            if let Step::Logits(_, logits) = step {
                last.extend_from_slice(logits);
            }
            Ok(())
        })?;
        Ok(last)
    }

    /// Appends `tokens` and passes the logits after each to `each`, with the token's index in `tokens`.
    ///
    /// # Errors
    /// `ContextFull` if they do not fit, `Invalid` for a token outside the vocabulary; nothing is appended
    /// then. `Budget` if a GPU was lost and the budget is too small for the CPU: the session keeps its
    /// tokens, but cannot compute.
    pub fn for_each_logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.append(tokens, Want::All, None, &mut |step| {
            if let Step::Logits(i, logits) = step {
                each(i, logits);
            }
            Ok(())
        })
    }

    /// Appends `tokens` and returns the `k` likeliest next tokens with their logits, likeliest first. A
    /// device then sends back only these. Returns fewer if some logits are not numbers.
    ///
    /// # Errors
    /// As [`Session::for_each_logits`]; `Invalid` for a `k` of zero or above [`MAX_BEST`], and for no tokens.
    #[doc(hidden)]
    pub fn best(&mut self, tokens: &[u32], k: usize) -> Result<Vec<(u32, f32)>> {
        if k == 0 || k > MAX_BEST || tokens.is_empty() {
            let what = format!("the {k} likeliest after {} tokens", tokens.len());
            return Err(Error::Invalid(format!("{what}: ask for 1 to {MAX_BEST}, after one token or more")));
        }
        let mut best = Vec::with_capacity(k);
        self.append(tokens, Want::Best(k), None, &mut |step| {
            if let Step::Best(found) = step {
                best.extend_from_slice(found);
            }
            Ok(())
        })?;
        Ok(best)
    }

    /// Appends `tokens` chunk by chunk. After cancellation or an error of `emit`, the finished chunks stay.
    /// If a GPU fails, the CPU continues from there, and no step is reported twice.
    pub(super) fn append(
        &mut self,
        tokens: &[u32],
        want: Want,
        cancel: Option<&CancelToken>,
        emit: Emit,
    ) -> Result<()> {
        // Several tokens with wanted logits are a turn, which a caller may rewind as a whole.
        let turn = want != Want::Nothing && tokens.len() > 1;
        if turn {
            self.mark();
        }
        self.append_pieces(tokens, want, cancel, emit)?;
        if turn {
            self.mark();
        }
        Ok(())
    }

    fn append_pieces(
        &mut self,
        tokens: &[u32],
        want: Want,
        cancel: Option<&CancelToken>,
        emit: Emit,
    ) -> Result<()> {
        let needed = self.tokens.len() + tokens.len();
        if needed > self.context() {
            return Err(Error::ContextFull { needed, limit: self.context() });
        }
        self.check_vocabulary(tokens)?;
        let vocab = self.engine.model().weights.vocab();
        // Finished tokens, and tokens whose logits were reported. These are more if a device failed between
        // two rows.
        let (mut done, mut emitted) = (0, 0);
        while done < tokens.len() {
            self.catch_up(cancel, emit)?;
            check(cancel)?;
            let rest = &tokens[done..];
            let chunk = &rest[..piece(rest.len(), self.state.chunk())];
            let is_last = done + chunk.len() == tokens.len();
            let want = if is_last || want == Want::All { want } else { Want::Nothing };
            let (layers, waits) = (self.engine.model().spec.layers.len(), !self.state.is_gpu());
            let mut read = done;
            let computed = self.forward(chunk, want, &mut |passing| {
                match passing {
                    // A long chunk may take minutes on the CPU, so we report each layer. Submitting work to a
                    // GPU takes no time, and cannot be undone.
                    Passing::Layers(n) if waits => {
                        check(cancel)?;
                        emit(Step::Layer)?;
                        let so_far = done + chunk.len() * n / layers;
                        if so_far > read && n < layers {
                            read = so_far;
                            emit(Step::Read(read))?;
                        }
                    }
                    Passing::Logits(i, logits) if done + i >= emitted => {
                        numbers(logits.iter().copied())?;
                        emitted = done + i + 1;
                        emit(Step::Logits(done + i, logits))?;
                    }
                    Passing::Best(_, best) => {
                        likeliest_are_numbers(best, want, vocab)?;
                        emit(Step::Best(best))?;
                    }
                    _ => {}
                }
                Ok(())
            });
            if let Err(Error::NotFinite { .. }) = computed {
                return Err(self.not_finite(tokens, done, cancel));
            }
            if !self.stays(computed)? {
                continue;
            }
            self.tokens.extend_from_slice(chunk);
            self.held = self.tokens.len();
            done += chunk.len();
            emit(Step::Read(done))?;
        }
        Ok(())
    }

    /// Marks the current position as one to rewind to: the beginning or end of a turn.
    pub(super) fn mark(&mut self) {
        self.state.mark(self.held);
    }

    /// How many of `left` tokens the next chunk has.
    pub(super) fn piece(&self, left: usize) -> usize {
        piece(left, self.state.chunk())
    }

    /// # Errors
    /// `Invalid` for a token outside the vocabulary.
    pub(super) fn check_vocabulary(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.engine.model().weights.vocab();
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(bad) => Err(Error::Invalid(format!("token {bad} is outside the vocabulary of {vocab}"))),
            None => Ok(()),
        }
    }

    /// Finds where values stopped being finite. To do so, computes all tokens again, from the first to the
    /// end of the chunk at `done` in `tokens`, with a check after every layer. Then drops all tokens, because
    /// keys and values that are not finite would spoil every later token.
    fn not_finite(&mut self, tokens: &[u32], done: usize, cancel: Option<&CancelToken>) -> Error {
        let mut all = std::mem::take(&mut self.tokens);
        self.held = 0;
        let until = all.len() + piece(tokens.len() - done, self.state.chunk());
        all.extend_from_slice(&tokens[done..]);
        while self.held < until {
            let n = piece(until - self.held, self.state.chunk());
            let chunk = &all[self.held..self.held + n];
            let seen = self.forward(chunk, Want::Finite, &mut |_| check(cancel));
            if let Err(e) = seen {
                self.held = 0;
                return e;
            }
            self.held += n;
        }
        self.held = 0;
        Error::NotFinite { place: "in the output head".into() }
    }

    /// Runs `chunk` through the model at the end of the cache.
    fn forward(
        &mut self,
        chunk: &[u32],
        want: Want,
        emit: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        let engine = self.engine.clone();
        let on = engine.processors().of(self.state.is_gpu());
        let part = Part { timeline: &mut *self.state, tokens: chunk, pos: self.held, want };
        on.processor.forward(&on.model, &mut [part], emit)?;
        self.processed += chunk.len() as u64;
        Ok(())
    }

    /// Whether `computed` succeeded. If the device failed, marks it as lost and returns `false`.
    fn stays(&mut self, computed: Result<()>) -> Result<bool> {
        match computed {
            Err(Error::Device(why)) if self.state.is_gpu() => {
                self.engine.processors().lose(&why);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// If the GPU with this timeline was lost, moves it to the CPU. Then computes the tokens that are not in
    /// the cache.
    fn catch_up(&mut self, cancel: Option<&CancelToken>, emit: Emit) -> Result<()> {
        let engine = self.engine.clone();
        if let Some(why) = engine.lost().filter(|_| self.state.location() != Location::Cpu) {
            let (capacity, chunk) = (self.state.capacity(), self.state.chunk());
            // Frees the old memory first.
            self.state = Box::new(Gone { capacity, chunk });
            (self.held, self.booking) = (0, None);
            let (booking, state) = place(engine.processors().take_over()?, capacity, chunk)?;
            (self.booking, self.state) = (Some(booking), state);
            emit(Step::Moved(why))?;
        }
        while self.held < self.tokens.len() {
            check(cancel)?;
            let n = piece(self.tokens.len() - self.held, self.state.chunk());
            let chunk = self.tokens[self.held..self.held + n].to_vec();
            self.forward(&chunk, Want::Nothing, &mut |_| check(cancel))?;
            self.held += n;
        }
        Ok(())
    }
}

/// # Errors
/// `NotFinite` if a logit is not a finite number. The caller finds the place afterwards.
pub(super) fn numbers(logits: impl IntoIterator<Item = f32>) -> Result<()> {
    if logits.into_iter().all(f32::is_finite) {
        return Ok(());
    }
    Err(Error::NotFinite { place: String::new() })
}

/// Checks that all wanted greatest logits were found and are finite. If a token's residual stream is not
/// finite, none of its logits is a number.
pub(super) fn likeliest_are_numbers(found: &[(u32, f32)], want: Want, vocab: usize) -> Result<()> {
    match want {
        Want::Best(k) if found.len() < k.min(vocab) => numbers([f32::NAN]),
        _ => numbers(found.iter().map(|best| best.1)),
    }
}

fn check(cancel: Option<&CancelToken>) -> Result<()> {
    if cancel.is_some_and(CancelToken::is_cancelled) { Err(Error::Cancelled) } else { Ok(()) }
}

/// How many of `left` tokens to take at once, if a chunk has at most `chunk`. Some processors compute calls
/// of [`MANY`] or more tokens in another precision. So the last piece of a longer prompt gets at least that
/// many: results depend on the prompt, not on the chunk that the budget allows.
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
