//! Chooses the next token from logits.
//!
//! Biases of single tokens are applied first. Then comes the chain, whose default order is llama.cpp's:
//! penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature. A token is drawn from the
//! candidates that are left. Mirostat replaces the chain except its temperature, as in llama.cpp. At
//! temperature 0 the likeliest token after biases, penalties and DRY is taken, and nothing is random.
//!
//! With a given seed, a choice is a function of the logits and the earlier tokens: there is no clock and no
//! global generator.

mod candidates;
mod chain;
mod cuts;
mod dry;
mod mirostat;
mod options;
mod penalties;
mod rng;
#[cfg(test)]
mod tests;

#[doc(hidden)]
pub use candidates::Candidate;
pub use chain::Link;
#[doc(hidden)]
pub use dry::Breakers;
pub use options::{LogitBias, Mirostat, Sampling};

use crate::error::Result;
use candidates::{Candidates, Order, likelier};
use dry::Dry;
use mirostat::Surprise;
use penalties::Penalties;
use rng::Rng;

/// Logits that all differ by less than this carry no information. A head whose weights were scaled to zero
/// gives such logits: every token would be drawn equally often.
const FLAT: f32 = 1e-3;

/// Draws tokens as a [`Sampling`] says. Holds the random state and the recent tokens.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub struct Sampler {
    with: Sampling,
    /// The links that have an effect.
    chain: Vec<Link>,
    rng: Rng,
    penalties: Penalties,
    dry: Dry,
    surprise: Option<Surprise>,
    candidates: Candidates,
}

impl Sampler {
    /// Creates a sampler.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(with: Sampling) -> Result<Sampler> {
        with.validate()?;
        Ok(Sampler {
            chain: with.acting(),
            rng: Rng::new(with.seed),
            penalties: Penalties::new(&with),
            dry: Dry::new(&with),
            surprise: Surprise::new(&with),
            candidates: Candidates::new(),
            with,
        })
    }

    /// The texts that DRY matches no repetition across; `None` if DRY is off. A sampler has no tokenizer, so
    /// the caller passes them as tokens to [`Sampler::set_breakers`].
    #[doc(hidden)]
    pub fn breakers(&self) -> Option<&[String]> {
        self.chain.contains(&Link::Dry).then_some(&self.with.dry_breakers)
    }

    /// Sets the breakers; see [`Sampler::breakers`].
    #[doc(hidden)]
    pub fn set_breakers(&mut self, breakers: Breakers) {
        self.dry.set_breakers(breakers);
    }

    /// Forgets the text: the next accepted token is its first. The random state and what mirostat has learned
    /// are kept.
    pub fn restart(&mut self) {
        self.penalties.clear();
        self.dry.clear();
        self.candidates.clear();
    }

    /// Records a token of the prompt or of the output, for the penalties. Mirostat learns from a token that
    /// was sampled.
    pub fn accept(&mut self, token: u32) {
        self.penalties.accept(token);
        self.dry.accept(token);
        if let (Some(surprise), Some(p)) = (&mut self.surprise, self.candidates.p(token)) {
            surprise.learn(p);
            self.candidates.clear();
        }
    }

    /// How many of the likeliest tokens [`Sampler::sample_best`] needs to choose from; `None` if all logits
    /// are needed.
    #[doc(hidden)]
    pub fn enough(&self) -> Option<usize> {
        if !self.with.logit_bias.is_empty() || self.surprise.is_some() {
            return None;
        }
        // Before top-k, only steps may come whose effect on the likeliest tokens does not depend on the
        // others.
        let first = self.chain.iter().find(|link| **link != Link::MinP);
        match first {
            Some(Link::TopK) => Some(self.with.top_k),
            None if !self.with.is_random() => Some(1),
            _ => None,
        }
    }

    /// Samples the next token from the [`Sampler::enough`] likeliest. They are listed with their logits:
    /// likeliest first, the lower id first among equals, without NaN. The result is that of
    /// [`Sampler::sample`].
    #[doc(hidden)]
    pub fn sample_best(&mut self, best: &[(u32, f32)]) -> u32 {
        self.candidates.fill(best.iter().copied(), Order::Likelihood);
        // Only mirostat uses the size of the vocabulary, and it needs all logits.
        self.narrow(best.len());
        self.draw()
    }

    /// Samples the next token; 0 if no logit is a number. Adds the biases to `logits` in place.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.weigh(logits);
        self.draw()
    }

    /// The candidates for the next token with their probabilities, in no order. Adds the biases to `logits`
    /// in place.
    #[doc(hidden)]
    pub fn weigh(&mut self, logits: &mut [f32]) -> &[Candidate] {
        for b in &self.with.logit_bias {
            if let Some(logit) = logits.get_mut(b.token as usize) {
                *logit += b.bias;
            }
        }
        self.candidates.fill((0..).zip(logits.iter().copied()), Order::Id);
        self.narrow(logits.len());
        &self.candidates.list
    }

    /// Passes the candidates through the chain. If many are left with nearly equal logits, a draw would be
    /// noise. Then only the likeliest is kept, whatever the temperature.
    fn narrow(&mut self, vocab: usize) {
        let Sampler { with, chain, rng, penalties, dry, surprise, candidates } = self;
        for link in chain.iter() {
            if candidates.list.is_empty() {
                return;
            }
            match link {
                Link::Penalties => penalties.apply(with, candidates),
                Link::Dry => dry.apply(with, candidates),
                Link::TopNSigma => candidates.top_n_sigma(with.top_n_sigma),
                Link::TopK => candidates.keep(with.top_k),
                Link::Typical => candidates.typical(with.typical_p),
                Link::TopP => candidates.top_p(with.top_p),
                Link::MinP => candidates.min_p(with.min_p),
                Link::Xtc => {
                    if rng.unit() < f64::from(with.xtc_probability) {
                        candidates.xtc(with.xtc_threshold);
                    }
                }
                Link::Temperature => candidates.temperature(with.temperature),
            }
        }
        let heat = if chain.contains(&Link::Temperature) { with.temperature } else { 1.0 };
        if !with.is_random() || candidates.are_flat(FLAT / heat) {
            let best = candidates.list.iter().min_by(|a, b| likelier(a, b)).copied();
            candidates.clear();
            candidates.list.extend(best);
        }
        if let Some(surprise) = surprise {
            surprise.cut(candidates, vocab);
        }
        candidates.weigh();
    }

    /// Draws one of the candidates.
    fn draw(&mut self) -> u32 {
        let list = &self.candidates.list;
        let [.., last] = list[..] else { return 0 };
        if list.len() == 1 {
            return last.id;
        }
        let sum: f64 = list.iter().map(|c| f64::from(c.p)).sum();
        let mut point = self.rng.unit() * sum;
        for c in list {
            point -= f64::from(c.p);
            if point < 0.0 {
                return c.id;
            }
        }
        last.id
    }
}

/// The likeliest token, the lowest id among equals. NaN counts as less than everything.
#[doc(hidden)]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0 as u32
}
