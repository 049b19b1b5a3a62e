//! The steps that remove candidates, and the temperature. Each keeps at least one candidate.
//!
//! The candidates kept equal those of llama.cpp's samplers of the same names (`tests/samplers.rs`).

use super::candidates::{Candidate, Candidates, Order, likelier};

/// Candidates that top-p sorts at first. Sorting a whole vocabulary would take longer than all other steps.
const FEW: usize = 256;

impl Candidates {
    /// Keeps candidates that are at least `p` times as likely as the likeliest.
    pub(super) fn min_p(&mut self, p: f32) {
        let least = self.max() + p.ln();
        self.list.retain(|c| c.logit >= least);
    }

    /// Keeps the fewest candidates that together have the probability `p`.
    pub(super) fn top_p(&mut self, p: f32) {
        self.weigh();
        let len = self.list.len();
        let mut first = FEW.min(len);
        loop {
            self.sort(first);
            let mut sum = 0.0f64;
            let enough = |c: &Candidate| {
                sum += f64::from(c.p);
                sum >= f64::from(p)
            };
            match self.list[..first].iter().position(enough) {
                Some(last) => {
                    self.list.truncate(last + 1);
                    self.order = Order::Likelihood;
                    return;
                }
                None if first == len => return,
                None => first = (8 * first).min(len),
            }
        }
    }

    /// Keeps the candidates whose surprise is nearest to the entropy, until together they have more than the
    /// probability `p`.
    pub(super) fn typical(&mut self, p: f32) {
        self.weigh();
        // Count 0 · ln 0 as 0.
        let entropy = -self.list.iter().filter(|c| c.p > 0.0).map(|c| c.p * c.p.ln()).sum::<f32>();
        self.scored.clear();
        self.scored.extend(self.list.iter().map(|&c| ((-c.p.ln() - entropy).abs(), c)));
        self.scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| likelier(&a.1, &b.1)));
        let mut sum = 0.0f64;
        let enough = |s: &(f32, Candidate)| {
            sum += f64::from(s.1.p);
            sum > f64::from(p)
        };
        let n = self.scored.iter().position(enough).map_or(self.scored.len(), |last| last + 1);
        self.list.clear();
        self.list.extend(self.scored[..n].iter().map(|s| s.1));
        self.order = Order::Unknown;
    }

    /// Keeps candidates within `n` standard deviations of the highest logit.
    pub(super) fn top_n_sigma(&mut self, n: f32) {
        let count = self.list.len() as f64;
        let mean = self.list.iter().map(|c| f64::from(c.logit)).sum::<f64>() / count;
        let variance = self.list.iter().map(|c| (f64::from(c.logit) - mean).powi(2)).sum::<f64>() / count;
        let least = f64::from(self.max()) - f64::from(n) * variance.sqrt();
        self.list.retain(|c| f64::from(c.logit) >= least);
    }

    /// Of the candidates with a probability of at least `threshold`, drops all but the least likely.
    pub(super) fn xtc(&mut self, threshold: f32) {
        self.weigh();
        let probable = self.list.iter().filter(|c| c.p >= threshold).count();
        if probable > 1 {
            self.sort(probable);
            self.list.drain(..probable - 1);
        }
    }

    /// Divides the logits by `t`.
    pub(super) fn temperature(&mut self, t: f32) {
        for c in &mut self.list {
            c.logit = (c.logit / t).clamp(f32::MIN, f32::MAX);
        }
    }
}
