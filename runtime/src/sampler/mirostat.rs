//! Mirostat (Basu et al., 2020, <https://arxiv.org/abs/2007.14966>): keeps as many candidates as hold the
//! text's surprise at a target, however certain the model is.

use super::candidates::Candidates;
use super::options::{Mirostat, Sampling};

/// Number of candidates from which the exponent of Zipf's law is estimated, as in llama.cpp.
const ESTIMATED_FROM: usize = 100;

/// The highest surprise that a candidate may have (`mu`), in bits. It follows the surprise of the chosen
/// tokens.
#[derive(Clone, Debug)]
pub(super) struct Surprise {
    version: Mirostat,
    tau: f32,
    eta: f32,
    mu: f32,
}

impl Surprise {
    pub(super) fn new(with: &Sampling) -> Option<Surprise> {
        let (version, tau, eta) = (with.mirostat, with.mirostat_tau, with.mirostat_eta);
        let acts = version != Mirostat::Off && with.is_random();
        acts.then_some(Surprise { version, tau, eta, mu: 2.0 * tau })
    }

    /// Drops candidates that are too surprising. `vocab` is the size of the vocabulary.
    pub(super) fn cut(&self, candidates: &mut Candidates, vocab: usize) {
        match self.version {
            Mirostat::Off => {}
            Mirostat::V1 => {
                let n = self.number(candidates, vocab);
                candidates.keep(n);
            }
            Mirostat::V2 => {
                candidates.weigh();
                let n = candidates.list.iter().filter(|c| -c.p.log2() <= self.mu).count();
                candidates.keep(n.max(1));
            }
        }
    }

    /// Equation 2 of the paper's algorithm: how many of the likeliest tokens have a surprise of at most `mu`
    /// under Zipf's law.
    fn number(&self, candidates: &mut Candidates, vocab: usize) -> usize {
        let first = ESTIMATED_FROM.min(candidates.list.len());
        candidates.sort(first);
        let (mut tb, mut tt) = (0.0f32, 0.0f32);
        for (i, pair) in candidates.list[..first].windows(2).enumerate() {
            let t = ((i + 2) as f32 / (i + 1) as f32).ln();
            // ln of the ratio of their probabilities.
            let b = pair[0].logit - pair[1].logit;
            tb += t * b;
            tt += t * t;
        }
        let s = tb / tt;
        let epsilon = s - 1.0;
        let k = (epsilon * self.mu.exp2() / (1.0 - (vocab as f32).powf(-epsilon))).powf(1.0 / s);
        // NaN becomes 0.
        (k as usize).max(1)
    }

    /// Updates `mu` from the probability of the chosen token.
    pub(super) fn learn(&mut self, p: f32) {
        let surprise = -p.log2();
        if surprise.is_finite() {
            self.mu -= self.eta * (surprise - self.tau);
        }
    }
}
