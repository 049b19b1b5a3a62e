//! One timeline: a KV cache, the tokens in it, and how many were ever computed.

use super::engine::Engine;
use super::failover::{Booking, Computing};
use super::plan::CHUNK;
use super::processor::{Gone, Lies, Part, Timeline};
use crate::error::{Error, Result};
use crate::kernels::MANY;
use crate::kernels::MAX_BEST;
use crate::model::forward::{Passing, Want};
use crate::telemetry::CancelToken;

/// The context a session gets unless asked otherwise (or the model's, where that is shorter): enough for a long chat,
/// small enough for a phone.
pub(super) const DEFAULT_CONTEXT: usize = 4096;

/// How a [`Session`] is made.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Positions in the KV cache; by default the model's context, at most 4096.
    pub context: Option<usize>,
    /// Tokens of a prompt that pass through the layers together; by default 512, or what the plan of a budget says. Results
    /// do not depend on it.
    pub chunk: Option<usize>,
}

impl SessionOptions {
    /// Positions in the KV cache.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Tokens of a prompt that pass through the layers together.
    #[must_use]
    pub fn with_chunk(mut self, tokens: usize) -> Self {
        self.chunk = Some(tokens);
        self
    }
}

/// One timeline of a model. All its memory is allocated when it is made. Use it from one thread at a time.
pub struct Session {
    pub(super) engine: Engine,
    pub(super) state: Box<dyn Timeline>,
    pub(super) tokens: Vec<u32>,
    /// How many of them the cache holds: all, but for those that were lost with a device and are to be read again.
    pub(super) held: usize,
    pub(super) processed: u64,
    /// Its part of the budget.
    booking: Option<Booking>,
}

/// What the caller of [`Session::append`] wants of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// None.
    Nothing,
    /// Those of every token.
    All,
    /// Those of the last one.
    Last,
    /// So many of the greatest of the last one.
    Best(usize),
}

/// What happens while tokens are appended.
pub(super) enum Step<'a> {
    /// So many of them are done, or as much of all layers as these would be.
    Read(usize),
    /// Logits at a token, by its index.
    Logits(usize, &'a [f32]),
    /// The greatest logits at the last token, with the tokens that they are of.
    Best(&'a [(u32, f32)]),
    /// A layer of many is done: another timeline may be computed before the next.
    Layer,
    /// The GPU is gone, for the reason given in one line; the CPU reads again what was lost with it, and goes on.
    Moved(&'a str),
}

/// Hears what happens while tokens are appended. An error ends that.
pub(super) type Hear<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

impl Engine {
    /// An empty timeline.
    ///
    /// # Errors
    /// `Invalid` for a context of zero or beyond what the model was made for or the budget planned for.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        let (limit, plan) = (self.model().spec.context, self.memory_plan());
        // A plan's session is the default one.
        let context = options.context.unwrap_or(plan.context);
        check_context(context, limit)?;
        let chunk = match options.chunk {
            Some(0) => return Err(Error::Invalid("a prefill chunk needs at least one token".into())),
            chunk => chunk.unwrap_or(if plan.is_tight() { plan.chunk } else { CHUNK }).min(context),
        };
        let on = if self.lost().is_some() { self.processors().take_over()? } else { self.processors().now() };
        let (booking, state) = match place(on, context, chunk) {
            // Nobody has noticed yet. A device that only has no room for one more goes on with those it has.
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

/// Memory for a timeline, and its part of the budget.
fn place(on: &Computing, context: usize, chunk: usize) -> Result<(Booking, Box<dyn Timeline>)> {
    let chunk = chunk.min(on.processor.longest_chunk());
    let booking = on.book(context, chunk)?;
    Ok((booking, on.processor.timeline(&on.model, context, chunk)?))
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

    /// The tokens so far: those in the cache, and after an error of a GPU those that were in its cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that the cache holds.
    pub fn context(&self) -> usize {
        self.state.capacity()
    }

    /// Tokens computed since the session was made, whether or not they are still in the cache: what reuse of the cache
    /// saves does not appear here.
    #[doc(hidden)]
    pub fn processed_tokens(&self) -> u64 {
        self.processed
    }

    /// Forgets everything after the first `len` tokens. Returns how many of these need not be computed again: a layer that keeps
    /// the end of the timeline alone goes back as far as that reaches, and then to where one of the last turns began or ended; one with
    /// a state to marks, which are there and every 256 tokens. The rest is computed before the next token.
    pub fn rewind(&mut self, len: usize) -> usize {
        self.tokens.truncate(len);
        self.held = self.state.rewind(self.held.min(len));
        self.held
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

    /// Appends `tokens` and returns the logits at the last: the output head is computed for one position.
    ///
    /// # Errors
    /// As [`Session::for_each_logits`]; `Invalid` for no tokens.
    pub fn last_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() {
            return Err(Error::Invalid("logits after no tokens: there is no last one".into()));
        }
        let mut last = Vec::new();
        self.append(tokens, Wish::Last, None, &mut |step| {
            if let Step::Logits(_, logits) = step {
                last.extend_from_slice(logits);
            }
            Ok(())
        })?;
        Ok(last)
    }

    /// Appends `tokens` and hands the logits at each to `each`, with the token's index in `tokens`.
    ///
    /// # Errors
    /// `ContextFull` where they do not fit, `Invalid` for a token outside the vocabulary; nothing is appended then.
    /// `Budget` where a GPU was lost and the budget has no room for the CPU in its place: the session knows its tokens
    /// still, but can compute no more.
    pub fn for_each_logits(&mut self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        self.append(tokens, Wish::All, None, &mut |step| {
            if let Step::Logits(i, logits) = step {
                each(i, logits);
            }
            Ok(())
        })
    }

    /// Appends `tokens` and returns the `k` likeliest next tokens with their logits, likeliest first: what a device sends
    /// back is then no whole vocabulary. Fewer where not so many logits are numbers.
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
        self.append(tokens, Wish::Best(k), None, &mut |step| {
            if let Step::Best(found) = step {
                best.extend_from_slice(found);
            }
            Ok(())
        })?;
        Ok(best)
    }

    /// Appends `tokens` chunk by chunk. On cancellation, and after an error of `hear`, the chunks done stay. Where a GPU fails, the
    /// CPU takes the timeline over in the middle of it: no step is heard twice.
    pub(super) fn append(
        &mut self,
        tokens: &[u32],
        wish: Wish,
        cancel: Option<&CancelToken>,
        hear: Hear,
    ) -> Result<()> {
        // Several tokens that something is wanted of are what may be taken back whole.
        let turn = wish != Wish::Nothing && tokens.len() > 1;
        if turn {
            self.mark();
        }
        self.append_pieces(tokens, wish, cancel, hear)?;
        if turn {
            self.mark();
        }
        Ok(())
    }

    fn append_pieces(
        &mut self,
        tokens: &[u32],
        wish: Wish,
        cancel: Option<&CancelToken>,
        hear: Hear,
    ) -> Result<()> {
        let needed = self.tokens.len() + tokens.len();
        if needed > self.context() {
            return Err(Error::ContextFull { needed, limit: self.context() });
        }
        self.check_vocabulary(tokens)?;
        let vocab = self.engine.model().weights.vocab();
        // Tokens done, and tokens whose logits were heard: more, where a device fails between two rows of them.
        let (mut done, mut heard) = (0, 0);
        while done < tokens.len() {
            self.catch_up(cancel, hear)?;
            check(cancel)?;
            let rest = &tokens[done..];
            let chunk = &rest[..piece(rest.len(), self.state.chunk())];
            let want = match (wish, done + chunk.len() == tokens.len()) {
                (Wish::All, _) => Want::All,
                (Wish::Last, true) => Want::Last,
                (Wish::Best(k), true) => Want::Best(k),
                (Wish::Nothing, _) | (_, false) => Want::Nothing,
            };
            let (layers, waits) = (self.engine.model().spec.layers.len(), !self.state.is_gpu());
            let mut read = done;
            let computed = self.forward(chunk, want, &mut |passing| {
                match passing {
                    // A long chunk may take minutes. What a GPU was told takes no time, and cannot be taken back.
                    Passing::Layers(n) if waits => {
                        check(cancel)?;
                        hear(Step::Layer)?;
                        let so_far = done + chunk.len() * n / layers;
                        if so_far > read && n < layers {
                            read = so_far;
                            hear(Step::Read(read))?;
                        }
                    }
                    Passing::Logits(i, logits) if done + i >= heard => {
                        numbers(logits.iter().copied())?;
                        heard = done + i + 1;
                        hear(Step::Logits(done + i, logits))?;
                    }
                    Passing::Best(_, best) => {
                        likeliest_are_numbers(best, want, vocab)?;
                        hear(Step::Best(best))?;
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
            hear(Step::Read(done))?;
        }
        Ok(())
    }

    /// The text so far will be gone back to: a turn ends here.
    pub(super) fn mark(&mut self) {
        self.state.mark(self.held);
    }

    /// How many of `left` tokens are appended at once.
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

    /// Finds where values stopped being finite, among the tokens held and then those of `tokens` up to the chunk at `done`:
    /// all are computed again, with a look after every layer. Forgets them afterwards, for keys and values that are no
    /// numbers spoil every later token.
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

    /// Takes `chunk` through the model behind what the cache holds.
    fn forward(
        &mut self,
        chunk: &[u32],
        want: Want,
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        let engine = self.engine.clone();
        let on = engine.processors().of(self.state.is_gpu());
        let part = Part { timeline: &mut *self.state, tokens: chunk, pos: self.held, want };
        on.processor.forward(&on.model, &mut [part], hear)?;
        self.processed += chunk.len() as u64;
        Ok(())
    }

    /// Whether something was computed where this timeline lies. Where the device has failed, that is nowhere any more.
    fn stays(&mut self, computed: Result<()>) -> Result<bool> {
        match computed {
            Err(Error::Device(why)) if self.state.is_gpu() => {
                self.engine.processors().lose(&why);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Moves to the CPU, if the GPU that held this timeline is lost, and reads again what was lost with it.
    fn catch_up(&mut self, cancel: Option<&CancelToken>, hear: Hear) -> Result<()> {
        let engine = self.engine.clone();
        if let Some(why) = engine.lost().filter(|_| self.state.lies() != Lies::OnCpu) {
            let (capacity, chunk) = (self.state.capacity(), self.state.chunk());
            // What it had is given back first.
            self.state = Box::new(Gone { capacity, chunk });
            (self.held, self.booking) = (0, None);
            let (booking, state) = place(engine.processors().take_over()?, capacity, chunk)?;
            (self.booking, self.state) = (Some(booking), state);
            hear(Step::Moved(why))?;
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
/// `NotFinite` where a logit is not a finite number; the place is found afterwards.
pub(super) fn numbers(logits: impl IntoIterator<Item = f32>) -> Result<()> {
    if logits.into_iter().all(f32::is_finite) {
        return Ok(());
    }
    Err(Error::NotFinite { place: String::new() })
}

/// Whether as many of the greatest logits as were wanted are there, and are finite numbers. Where the stream of a token is not
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
