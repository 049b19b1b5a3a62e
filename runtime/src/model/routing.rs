//! Optional changes to the router's choice that trade accuracy for fewer bytes read. All are off by default,
//! and counters record their effects.

use crate::error::{Error, Result};
use crate::kernels::{Choice, Choosing, Router, Score};
use std::sync::atomic::{AtomicU64, Ordering};

/// How routing differs from the model's own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Routing {
    /// Experts per token, if fewer than the model's.
    pub top_k: Option<usize>,
    /// Drops an expert that is not resident if its share of the token's gate weights is below this.
    pub skip_cold: f32,
    /// Raises the rank of resident experts by this fraction of the range of their scores (the cache prior of
    /// arXiv 2412.00099). Gate weights stay those of the router.
    pub cache_prior: f32,
    /// Guesses the next layer's experts from this layer's input, and prefetches up to this many on idle
    /// lanes. Does not change results.
    pub lookahead: usize,
}

impl Routing {
    /// Whether results may differ from the model's.
    #[doc(hidden)]
    pub fn is_lossy(&self) -> bool {
        self.top_k.is_some() || self.skip_cold > 0.0 || self.cache_prior > 0.0
    }

    /// # Errors
    /// `Invalid` if a number is out of range for this router.
    #[doc(hidden)]
    pub fn check(&self, router: &Router) -> Result<()> {
        if let Some(k) = self.top_k
            && !(1..=router.top_k).contains(&k)
        {
            return Err(Error::Invalid(format!(
                "{k} experts per token: choose 1 to {}, the number that this model uses",
                router.top_k
            )));
        }
        for (name, value) in [("skip-cold", self.skip_cold), ("cache-prior", self.cache_prior)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::Invalid(format!("{name} {value}: it must be at least 0 and below 1")));
            }
        }
        Ok(())
    }
}

/// How often routing changed the router's choice.
#[derive(Debug, Default)]
pub struct RoutingCounters {
    /// Experts that were dropped.
    pub dropped: AtomicU64,
    /// Experts that replaced one of the router's choice.
    pub redirected: AtomicU64,
}

/// Chooses experts again, with resident ones ranked higher. `logits` are `[tokens, experts]`. `own` holds the
/// router's choices, and is overwritten with the new ones.
pub fn prefer_resident(
    logits: &[f32],
    choosing: Choosing<'_>,
    resident: &[bool],
    prior: f32,
    own: &mut [Choice],
    counters: &RoutingCounters,
) {
    let router = choosing.router;
    let mut order: Vec<u32> = Vec::with_capacity(router.experts);
    let mut standings = vec![0.0; router.experts];
    for (logits, own) in logits.chunks_exact(router.experts).zip(own.chunks_exact_mut(router.top_k)) {
        choosing.standings(logits, &mut standings);
        let standing = |e: u32| standings[e as usize];
        // Experts of unselected groups have −∞ and stay there.
        let (low, high) = (0..router.experts as u32)
            .map(standing)
            .filter(|x| *x > f32::NEG_INFINITY)
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let bonus = prior * (high - low);
        let rank = |e: u32| standing(e) + if resident[e as usize] { bonus } else { 0.0 };
        order.clear();
        order.extend(0..router.experts as u32);
        order.sort_unstable_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
        order.truncate(router.top_k);
        let high = logits.iter().fold(f32::NEG_INFINITY, |high, x| high.max(*x));
        let sum: f32 = logits.iter().map(|&x| (x - high).exp()).sum();
        let weight = |rank: usize| match (router.score, order[rank]) {
            (Score::Softmax, e) => (logits[e as usize] - high).exp() / sum,
            (Score::Sigmoid { .. }, e) => Choosing::sigmoid(logits[e as usize]),
            (Score::Mixer { tolerance }, e) => Choosing::mixed(logits, tolerance, &order[..rank], e),
        };
        let scale = choosing.factor((0..order.len()).map(weight).sum());
        let others = order.iter().filter(|&&e| own.iter().all(|c| c.expert != e)).count();
        counters.redirected.fetch_add(others as u64, Ordering::Relaxed);
        for ((rank, to), &expert) in own.iter_mut().enumerate().zip(&order) {
            *to = Choice { expert, gate: weight(rank) * scale };
        }
    }
}

/// Sets the gate of weak, non-resident experts to zero, so that they are not computed.
pub fn drop_cold(
    choices: &mut [Choice],
    top_k: usize,
    resident: &[bool],
    threshold: f32,
    counters: &RoutingCounters,
) {
    for choices in choices.chunks_exact_mut(top_k) {
        let sum: f32 = choices.iter().map(|c| c.gate).sum();
        let strongest = choices.iter().map(|c| c.gate).fold(0.0, f32::max);
        for c in choices.iter_mut() {
            // The strongest expert always stays, so that every token has a feed-forward output.
            if !resident[c.expert as usize] && c.gate < threshold * sum && c.gate < strongest {
                c.gate = 0.0;
                counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Router =
        Router { experts: 4, top_k: 2, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };

    #[test]
    fn a_prior_moves_a_close_choice_to_a_resident_expert_with_its_own_weight() {
        let logits = [2.0, 1.0, 0.9, -1.0];
        let mut own = [Choice { expert: 0, gate: 0.7 }, Choice { expert: 1, gate: 0.3 }];
        let counters = RoutingCounters::default();
        prefer_resident(&logits, ROUTER.unbiased(), &[false, false, true, false], 0.1, &mut own, &counters);
        assert_eq!(own.map(|c| c.expert), [0, 2]);
        let ratio = own[1].gate / own[0].gate;
        assert!((ratio - (0.9f32 - 2.0).exp()).abs() < 1e-6);
        assert!((own[0].gate + own[1].gate - 1.0).abs() < 1e-6);
        assert_eq!(counters.redirected.load(Ordering::Relaxed), 1);
        // Without a prior the choice is the router's.
        prefer_resident(&logits, ROUTER.unbiased(), &[false, false, true, false], 0.0, &mut own, &counters);
        assert_eq!(own.map(|c| c.expert), [0, 1]);
    }

    #[test]
    fn weak_cold_experts_are_dropped_but_never_the_strongest() {
        let mut choices = [Choice { expert: 0, gate: 0.8 }, Choice { expert: 1, gate: 0.2 }];
        let counters = RoutingCounters::default();
        drop_cold(&mut choices, 2, &[false, true, false, false], 0.9, &counters);
        assert_eq!(choices.map(|c| c.gate), [0.8, 0.2]);
        drop_cold(&mut choices, 2, &[false; 4], 0.3, &counters);
        assert_eq!(choices.map(|c| c.gate), [0.8, 0.0]);
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 1);
    }
}
