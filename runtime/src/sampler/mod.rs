//! Choosing the next token from logits.
//!
//! Penalties come first, then top-k, temperature, top-p and min-p, as in llama.cpp's default chain. Given a seed, a
//! choice is a function of the logits and the tokens before: no clock, no global generator.

mod rng;

use crate::error::{Error, Result};
use rng::Rng;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How tokens are chosen. A number that switches a step off is named with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest so many; 0 for all.
    pub top_k: usize,
    /// Only the likeliest that together have this probability; 1 for all.
    pub top_p: f32,
    /// Only those at least this part as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Divides the logit of what appeared lately (multiplies a negative one); 1 for none.
    pub repeat_penalty: f32,
    /// How many tokens back counts as lately.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of what appeared lately; 0 for none.
    pub presence_penalty: f32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Longest memory of a penalty.
const MAX_LAST_N: usize = 1 << 20;

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// # Errors
    /// `Invalid`, naming the number and its range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f32, ok: bool, range: &str| {
            if ok { Ok(()) } else { Err(Error::Invalid(format!("{name} {value}: it must be {range}"))) }
        };
        let t = self.temperature;
        check("temperature", t, (0.0..=100.0).contains(&t), "between 0 and 100")?;
        check("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        let r = self.repeat_penalty;
        check("repeat-penalty", r, r > 0.0 && r <= 100.0, "above 0 and at most 100")?;
        let p = self.presence_penalty;
        check("presence-penalty", p, (-100.0..=100.0).contains(&p), "between -100 and 100")?;
        let n = self.repeat_last_n;
        check("repeat-last-n", n as f32, n <= MAX_LAST_N, "at most 1048576")
    }
}

/// A [`Sampling`] at work: its random state and what appeared lately.
#[derive(Clone, Debug)]
pub struct Sampler {
    with: Sampling,
    rng: Rng,
    last: VecDeque<u32>,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(with: Sampling) -> Result<Sampler> {
        with.validate()?;
        Ok(Sampler { rng: Rng::new(with.seed), with, last: VecDeque::new(), candidates: Vec::new() })
    }

    /// Remembers a token, of the prompt or generated, for the penalties.
    pub fn accept(&mut self, token: u32) {
        if self.with.repeat_last_n == 0 {
            return;
        }
        if self.last.len() == self.with.repeat_last_n {
            self.last.pop_front();
        }
        self.last.push_back(token);
    }

    /// How many of the likeliest tokens are enough to choose among ([`Sampler::sample_best`]); `None` where it takes all
    /// logits.
    pub fn enough(&self) -> Option<usize> {
        match (self.penalizes(), self.with.temperature == 0.0, self.with.top_k) {
            (false, true, _) => Some(1),
            (false, false, k) if k > 0 => Some(k),
            _ => None,
        }
    }

    /// The next token, chosen among the [`Sampler::enough`] likeliest, which are listed with their logits, likeliest first
    /// (of equals the lower id first), NaN left out. The same as [`Sampler::sample`] says.
    pub fn sample_best(&mut self, best: &[(u32, f32)]) -> u32 {
        if self.with.temperature == 0.0 {
            return best.first().filter(|b| b.1 > f32::NEG_INFINITY).map_or(0, |b| b.0);
        }
        self.candidates.clear();
        self.candidates.extend_from_slice(best);
        self.choose()
    }

    /// The next token. Penalties are applied to `logits` in place.
    ///
    /// # Panics
    /// Where there are no logits.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.penalize(logits);
        if self.with.temperature == 0.0 {
            return argmax(logits);
        }
        self.candidates.clear();
        let finite = |(i, &x): (usize, &f32)| (!x.is_nan()).then_some((i as u32, x));
        self.candidates.extend(logits.iter().enumerate().filter_map(finite));
        // Zeros are equal, as they are to `argmax`.
        let descending =
            |a: &(u32, f32), b: &(u32, f32)| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0));
        let k = self.with.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, descending);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(descending);
        self.choose()
    }

    /// One of the candidates, which are in order.
    fn choose(&mut self) -> u32 {
        let (best, max) = match self.candidates.first() {
            Some(&first) if first.1.is_finite() => first,
            // Nothing can be weighed against infinity.
            Some(&(best, f32::INFINITY)) => return best,
            _ => return 0,
        };
        let mut sum = 0.0f64;
        for (_, x) in &mut self.candidates {
            *x = ((*x - max) / self.with.temperature).exp();
            sum += f64::from(*x);
        }
        let mut kept = 0.0f64;
        let mut n = 0;
        for (_, p) in &self.candidates {
            // The likeliest has weight 1: min-p is a bound on the weight itself.
            if n > 0 && (kept >= f64::from(self.with.top_p) * sum || *p < self.with.min_p) {
                break;
            }
            kept += f64::from(*p);
            n += 1;
        }
        let mut point = self.rng.unit() * kept;
        for &(id, p) in &self.candidates[..n] {
            point -= f64::from(p);
            if point < 0.0 {
                return id;
            }
        }
        best
    }

    fn penalizes(&self) -> bool {
        let Sampling { repeat_penalty, repeat_last_n, presence_penalty, .. } = self.with;
        repeat_last_n > 0 && (repeat_penalty != 1.0 || presence_penalty != 0.0)
    }

    fn penalize(&self, logits: &mut [f32]) {
        if !self.penalizes() {
            return;
        }
        let Sampling { repeat_penalty, presence_penalty, .. } = self.with;
        let mut seen: Vec<u32> = self.last.iter().copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(x) = logits.get_mut(id as usize) {
                *x = if *x > 0.0 { *x / repeat_penalty } else { *x * repeat_penalty } - presence_penalty;
            }
        }
    }
}

/// The likeliest token, the first of equals. NaN is less than everything.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(with: Sampling, logits: &[f32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(with).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(&mut logits.to_vec()) as usize] += 1;
        }
        counts
    }

    fn open() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
    }

    #[test]
    fn samples_follow_the_distribution() {
        let p = [0.5f32, 0.3, 0.15, 0.05];
        let logits = p.map(f32::ln);
        let n = 40_000;
        for (count, p) in counts(open(), &logits, n).iter().zip(p) {
            assert!((*count as f32 / n as f32 - p).abs() < 0.01);
        }
        let sharp = counts(Sampling { temperature: 0.5, ..open() }, &logits, n);
        let want = 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025);
        assert!((sharp[0] as f32 / n as f32 - want).abs() < 0.01);
    }

    #[test]
    fn each_cut_keeps_what_it_says() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        let kept = |with| counts(with, &logits, 2000).iter().filter(|&&c| c > 0).count();
        assert_eq!(kept(Sampling { top_k: 2, ..open() }), 2);
        assert_eq!(kept(Sampling { top_p: 0.75, ..open() }), 2);
        assert_eq!(kept(Sampling { top_p: 0.85, ..open() }), 3);
        assert_eq!(kept(Sampling { min_p: 0.2, ..open() }), 3);
        assert_eq!(kept(Sampling::greedy()), 1);
    }

    #[test]
    fn penalties_turn_away_from_what_was_said() {
        let mut sampler = Sampler::new(Sampling { repeat_penalty: 2.0, ..Sampling::greedy() }).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 1.5, -1.0]), 1);
        sampler.accept(1);
        assert_eq!(sampler.sample(&mut [1.0, 1.5, -1.0]), 0);
        let mut forgetful =
            Sampler::new(Sampling { repeat_penalty: 2.0, repeat_last_n: 1, ..Sampling::greedy() }).unwrap();
        forgetful.accept(1);
        forgetful.accept(2);
        assert_eq!(forgetful.sample(&mut [1.0, 1.5, -1.0]), 1);
    }

    #[test]
    fn the_likeliest_are_enough_where_it_says_so() {
        let logits: Vec<f32> = (0..300).map(|i| (4.0 * (i as f32 * 0.7).sin()).round() / 4.0).collect();
        let broken = [
            vec![f32::NAN; 5],
            vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY],
            vec![1.0, f32::INFINITY, f32::INFINITY, f32::NAN],
            vec![f32::NAN, -0.0, 0.0],
        ];
        for with in [Sampling::greedy(), Sampling::default(), Sampling { top_k: 1, ..open() }] {
            let mut whole = Sampler::new(with).unwrap();
            let mut few = whole.clone();
            let k = few.enough().unwrap();
            for logits in std::iter::repeat_n(&logits, 50).chain(&broken) {
                let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
                best.retain(|b| !b.1.is_nan());
                best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
                best.truncate(k);
                assert_eq!(whole.sample(&mut logits.clone()), few.sample_best(&best));
            }
        }
        let enough = |with| Sampler::new(with).unwrap().enough();
        assert_eq!((enough(open()), enough(Sampling::default())), (None, Some(40)));
        assert_eq!(enough(Sampling { repeat_penalty: 1.1, ..Sampling::greedy() }), None);
        assert_eq!(enough(Sampling { presence_penalty: 0.5, ..Sampling::default() }), None);
        assert_eq!(
            enough(Sampling { presence_penalty: 0.5, repeat_last_n: 0, ..Sampling::greedy() }),
            Some(1)
        );
    }

    #[test]
    fn a_seed_repeats_and_broken_logits_do_no_harm() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| {
            let mut s = Sampler::new(Sampling { seed, ..open() }).unwrap();
            (0..20).map(|_| s.sample(&mut logits.clone())).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let mut s = Sampler::new(open()).unwrap();
        assert_eq!(s.sample(&mut [f32::NAN, 0.0, f32::NEG_INFINITY]), 1);
        assert_eq!(s.sample(&mut [f32::NAN, f32::NAN]), 0);
        assert!(Sampling { top_p: f32::NAN, ..open() }.validate().unwrap_err().to_string().contains("top-p"));
    }
}
