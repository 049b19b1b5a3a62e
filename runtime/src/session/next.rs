//! What the next token is chosen from, and the log probabilities that the caller wants to know.

use super::event::Event;
use super::listener::Listener;
use super::timeline::Step;
use crate::error::Result;
use crate::kernels::{MAX_BEST, best_of};
use crate::model::forward::Want;
use crate::sampler::Sampler;

/// What the next token is chosen from: no more than the sampler needs, because a device must send it to the
/// host. All logits if their probabilities are wanted.
pub(super) struct Next {
    pub(super) want: Want,
    pub(super) logits: Vec<f32>,
    best: Vec<(u32, f32)>,
    /// How many of the likeliest tokens are reported with each token; `None` if nothing is.
    reported: Option<usize>,
    /// The logits as the model gave them. Choosing changes `logits`.
    raw: Vec<f32>,
}

impl Next {
    /// With a constraint, all logits are needed, because the allowed tokens may not be among the likeliest.
    pub(super) fn new(sampler: &Sampler, guided: bool, reported: Option<usize>) -> Next {
        let all = guided || reported.is_some();
        let enough = sampler.enough().filter(|&k| k <= MAX_BEST && !all);
        let want = enough.map_or(Want::Last, Want::Best);
        let reported = reported.map(|k| k.min(MAX_BEST));
        Next { want, logits: Vec::new(), best: Vec::new(), reported, raw: Vec::new() }
    }

    pub(super) fn handle(&mut self, step: Step, listener: &mut Listener) -> Result<()> {
        if let Step::Moved(why) = step {
            listener.send(Event::GpuLost { note: why.to_owned() })?;
        }
        self.keep(step);
        Ok(())
    }

    /// Keeps the logits of a step.
    pub(super) fn keep(&mut self, step: Step) {
        match step {
            Step::Logits(_, last) => last.clone_into(&mut self.logits),
            Step::Best(best) => best.clone_into(&mut self.best),
            Step::Read(_) | Step::Moved(_) | Step::Layer => {}
        }
    }

    pub(super) fn sample(&mut self, sampler: &mut Sampler) -> u32 {
        match self.want {
            Want::Best(_) => sampler.sample_best(&self.best),
            _ => sampler.sample(&mut self.logits),
        }
    }

    /// Copies the logits before a token is chosen, if their probabilities are reported.
    pub(super) fn note(&mut self) {
        if self.reported.is_some() {
            self.logits.clone_into(&mut self.raw);
        }
    }

    /// The event with the log probability of the chosen token, if it is reported.
    pub(super) fn logprobs(&self, id: u32) -> Option<Event> {
        let mut best = vec![(0, 0.0); self.reported?];
        let found = if best.is_empty() { 0 } else { best_of(&self.raw, &mut best) };
        let most = self.raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = self.raw.iter().map(|&x| f64::from(x - most).exp()).sum();
        // The sum is 1 or more, because the largest summand is 1.
        let of = |logit: f32| (f64::from(logit - most) - sum.ln()) as f32;
        let logprob = of(*self.raw.get(id as usize)?);
        let top = best[..found].iter().map(|&(id, logit)| (id, of(logit))).collect();
        Some(Event::Logprobs { id, logprob, top })
    }
}
