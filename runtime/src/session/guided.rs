//! What a constraint does to a generation: which tokens may come next, which must, and when the answer is over.

use super::engine::Engine;
use super::event::GenerateOptions;
use crate::error::{Error, Result};
use crate::grammar::{Guide, Mask};
use crate::sampler::Sampler;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

pub(super) struct Guided {
    guide: Guide,
    /// Of the next token, where it is known already, or why it cannot be.
    mask: Option<Result<Mask>>,
    /// Whether headers and reasoning obey as well.
    whole: bool,
    /// Tokens that may not come before the answer has begun.
    ends: Vec<u32>,
}

impl Guided {
    /// # Errors
    /// `Invalid` for a constraint that does not compile, `Unsupported` for a tokenizer that knows no bytes.
    pub(super) fn new(engine: &Engine, options: &GenerateOptions) -> Result<Option<Guided>> {
        let Some(constraint) = &options.constraint else { return Ok(None) };
        let guide = engine.words()?.guide(constraint)?;
        let ends = engine.special_tokens().ends.clone();
        Ok(Some(Guided { guide, mask: None, whole: constraint.is_whole(), ends }))
    }

    /// Whether the next token has to obey, where the answer has begun or not.
    fn acts(&self, answers: bool) -> bool {
        self.whole || answers
    }

    /// Whether nothing may follow.
    pub(super) fn is_over(&self) -> bool {
        self.guide.is_over()
    }

    /// Tokens that must come next.
    pub(super) fn forced(&mut self, answers: bool) -> Vec<u32> {
        if self.acts(answers) { self.guide.forced() } else { Vec::new() }
    }

    /// Whether they are computed together with the token before.
    pub(super) fn is_hurried(&self) -> bool {
        self.guide.is_hurried()
    }

    /// Goes on behind a token.
    pub(super) fn take(&mut self, id: u32, answers: bool) -> Result<()> {
        self.mask = None;
        if self.acts(answers) { self.guide.take(id) } else { Ok(()) }
    }

    /// Itself, where the next token has to obey.
    pub(super) fn acting(&mut self, answers: bool) -> Option<&mut Guided> {
        self.acts(answers).then_some(self)
    }

    /// Finds what may come next, for each of `all`, while `work` is done. What fails fails when a token is chosen.
    pub(super) fn beside<T>(all: &mut [&mut Guided], work: impl FnOnce() -> T) -> T {
        if all.is_empty() {
            return work();
        }
        thread::scope(|scope| {
            scope.spawn(|| all.iter_mut().for_each(|guided| guided.find()));
            work()
        })
    }

    /// Finds what may come next.
    fn find(&mut self) {
        let guide = &mut self.guide;
        let mask = catch_unwind(AssertUnwindSafe(|| guide.mask()));
        let broken = |_| Err(Error::Invalid("the constraint cannot be followed here".into()));
        self.mask = Some(mask.unwrap_or_else(broken));
    }

    /// The next token: one that may come.
    pub(super) fn choose(&mut self, logits: &mut [f32], sampler: &mut Sampler, answers: bool) -> Result<u32> {
        if !self.acts(answers) {
            // It would be over without an answer.
            for &id in &self.ends {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            return Ok(sampler.sample(logits));
        }
        let mask = match self.mask.take() {
            Some(mask) => mask?,
            None => self.guide.mask()?,
        };
        mask.apply(logits);
        let id = sampler.sample(logits);
        if mask.allows(id) {
            return Ok(id);
        }
        // Biases have ruled out all that the constraint allows.
        mask.first().ok_or_else(|| Error::Invalid("the constraint allows no token here".into()))
    }
}
