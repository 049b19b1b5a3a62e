//! Applies a constraint to a generation: masks the logits, forces tokens, and ends the answer.

use super::engine::Engine;
use super::event::GenerateOptions;
use crate::error::{Error, Result};
use crate::grammar::{Guide, Mask};
use crate::sampler::Sampler;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

pub(super) struct Guided {
    guide: Guide,
    /// The mask for the next token, if it was computed already, or the error.
    mask: Option<Result<Mask>>,
    /// Whether the constraint also covers headers and reasoning.
    whole: bool,
    /// The end tokens, which may not come before the answer has begun.
    ends: Vec<u32>,
}

impl Guided {
    /// # Errors
    /// `Invalid` for a constraint that does not compile, `Unsupported` for a tokenizer whose tokens are not
    /// byte strings.
    pub(super) fn new(engine: &Engine, options: &GenerateOptions) -> Result<Option<Guided>> {
        let Some(constraint) = &options.constraint else { return Ok(None) };
        let words = engine.words()?;
        let guide = match options.logprobs {
            // Each token needs logits of its own.
            Some(_) => words.guide(&constraint.clone().one_by_one())?,
            None => words.guide(constraint)?,
        };
        let ends = engine.special_tokens().ends.clone();
        Ok(Some(Guided { guide, mask: None, whole: constraint.is_whole(), ends }))
    }

    /// Whether the constraint covers the next token. `answers`: whether it is part of the
    /// answer, not of a header or reasoning.
    fn acts(&self, answers: bool) -> bool {
        self.whole || answers
    }

    /// Whether the answer is complete and nothing may follow.
    pub(super) fn is_over(&self) -> bool {
        self.guide.is_over()
    }

    /// The tokens that the constraint forces next.
    pub(super) fn forced(&mut self, answers: bool) -> Vec<u32> {
        if self.acts(answers) { self.guide.forced() } else { Vec::new() }
    }

    /// Whether forced tokens are computed in one call with the token before them.
    pub(super) fn is_hurried(&self) -> bool {
        self.guide.is_hurried()
    }

    /// Advances the constraint by one token.
    pub(super) fn take(&mut self, id: u32, answers: bool) -> Result<()> {
        self.mask = None;
        if self.acts(answers) { self.guide.take(id) } else { Ok(()) }
    }

    /// Returns `self` if the constraint covers the next token.
    pub(super) fn acting(&mut self, answers: bool) -> Option<&mut Guided> {
        self.acts(answers).then_some(self)
    }

    /// Computes the masks of `all` on another thread while `work` runs. Errors are reported when the token is
    /// chosen.
    pub(super) fn beside<T>(all: &mut [&mut Guided], work: impl FnOnce() -> T) -> T {
        if all.is_empty() {
            return work();
        }
        thread::scope(|scope| {
            scope.spawn(|| all.iter_mut().for_each(|guided| guided.find()));
            work()
        })
    }

    /// Computes the mask of the next token.
    fn find(&mut self) {
        let guide = &mut self.guide;
        let mask = catch_unwind(AssertUnwindSafe(|| guide.mask()));
        let broken = |_| Err(Error::Invalid("the constraint cannot be followed here".into()));
        self.mask = Some(mask.unwrap_or_else(broken));
    }

    /// Chooses the next token among the allowed ones.
    pub(super) fn choose(&mut self, logits: &mut [f32], sampler: &mut Sampler, answers: bool) -> Result<u32> {
        if !self.acts(answers) {
            // An end token here would end the generation without an answer.
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
        // Logit biases excluded every allowed token.
        mask.first().ok_or_else(|| Error::Invalid("the constraint allows no token here".into()))
    }
}
