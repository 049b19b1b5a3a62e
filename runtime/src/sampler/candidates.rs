//! The tokens that can still be chosen. Their logits are finite from the start, so that no step has to check.

use std::cmp::Ordering;
use std::collections::HashMap;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Token id.
    pub id: u32,
    /// Logit, with the changes made so far.
    pub logit: f32,
    /// Probability among the candidates.
    pub p: f32,
}

/// The order of the candidates in their list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By id, so that a token is found by binary search.
    Id,
    /// The likeliest first, the lower id first among equals.
    Likelihood,
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Candidates {
    pub(super) list: Vec<Candidate>,
    pub(super) order: Order,
    /// Scratch space for a step that sorts by another number.
    pub(super) scored: Vec<(f32, Candidate)>,
}

/// From this many candidates on, equal logits mean that the model is broken. Fewer candidates may well be equal.
const MANY: usize = 16;

/// Orders by logit, the highest first, then by id. Zeros of both signs are equal.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

impl Candidates {
    pub(super) fn new() -> Candidates {
        Candidates { list: Vec::new(), order: Order::Unknown, scored: Vec::new() }
    }

    /// Replaces the candidates by these tokens, which come in this order. NaN and minus infinity are left
    /// out. A token with a logit of infinity becomes the only candidate.
    pub(super) fn fill(&mut self, logits: impl Iterator<Item = (u32, f32)>, order: Order) {
        self.list.clear();
        self.order = order;
        for (id, logit) in logits {
            if logit == f32::INFINITY {
                self.list.clear();
                self.list.push(Candidate { id, logit: f32::MAX, p: 0.0 });
                return;
            }
            if logit.is_finite() {
                self.list.push(Candidate { id, logit, p: 0.0 });
            }
        }
    }

    /// Whether there are many candidates, and their logits differ by less than `noise`.
    pub(super) fn are_flat(&self, noise: f32) -> bool {
        let logits = self.list.iter().map(|c| c.logit);
        let (low, high) = logits.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
        self.list.len() >= MANY && high - low < noise
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// The probability of a token; `None` if it is not a candidate.
    pub(super) fn p(&self, id: u32) -> Option<f32> {
        self.list.iter().find(|c| c.id == id).map(|c| c.p)
    }

    /// Moves the `first` likeliest to the front, in order; 0 sorts all.
    pub(super) fn sort(&mut self, first: usize) {
        if self.order == Order::Likelihood {
            return;
        }
        if first == 0 || first >= self.list.len() {
            self.list.sort_unstable_by(likelier);
            self.order = Order::Likelihood;
        } else {
            self.list.select_nth_unstable_by(first - 1, likelier);
            self.list[..first].sort_unstable_by(likelier);
            self.order = Order::Unknown;
        }
    }

    /// Keeps the `n` likeliest, in order.
    pub(super) fn keep(&mut self, n: usize) {
        self.sort(n);
        self.list.truncate(n);
        self.order = Order::Likelihood;
    }

    /// The highest logit.
    pub(super) fn max(&self) -> f32 {
        self.list.iter().fold(f32::MIN, |max, c| max.max(c.logit))
    }

    /// Computes the probabilities from the logits (softmax).
    pub(super) fn weigh(&mut self) {
        let max = self.max();
        let mut sum = 0.0f64;
        for c in &mut self.list {
            c.p = (c.logit - max).exp();
            sum += f64::from(c.p);
        }
        for c in &mut self.list {
            c.p = (f64::from(c.p) / sum) as f32;
        }
    }

    /// Changes the logits of the tokens in `of`. `change` gets a logit and the token's number in `of`.
    pub(super) fn adjust(&mut self, of: &HashMap<u32, u32>, change: impl Fn(f32, u32) -> f32) {
        let finite = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
        if self.order == Order::Id {
            for (&id, &n) in of {
                if let Ok(at) = self.list.binary_search_by_key(&id, |c| c.id) {
                    let c = &mut self.list[at];
                    c.logit = finite(change(c.logit, n));
                }
            }
            return;
        }
        for c in &mut self.list {
            if let Some(&n) = of.get(&c.id) {
                c.logit = finite(change(c.logit, n));
            }
        }
        self.order = Order::Unknown;
    }
}
