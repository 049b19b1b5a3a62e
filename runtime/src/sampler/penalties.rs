//! Penalties that make recent tokens less likely.

use super::candidates::Candidates;
use super::chain::Link;
use super::options::Sampling;
use std::collections::{HashMap, VecDeque};

/// The recent tokens, and how often each occurs among them. Empty if no penalty is active.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    last_n: usize,
    last: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

/// Number of tokens allocated in advance. Only a long prompt has more, and it comes before decoding begins.
const ROOM: usize = 1 << 12;

impl Penalties {
    pub(super) fn new(with: &Sampling) -> Penalties {
        let last_n = if Link::Penalties.acts(with) { with.repeat_last_n } else { 0 };
        let room = last_n.min(ROOM);
        Penalties { last_n, last: VecDeque::with_capacity(room), counts: HashMap::with_capacity(room) }
    }

    pub(super) fn accept(&mut self, token: u32) {
        if self.last_n == 0 {
            return;
        }
        if self.last.len() == self.last_n
            && let Some(old) = self.last.pop_front()
            && let Some(n) = self.counts.get_mut(&old)
        {
            *n -= 1;
            if *n == 0 {
                self.counts.remove(&old);
            }
        }
        self.last.push_back(token);
        *self.counts.entry(token).or_default() += 1;
    }

    pub(super) fn clear(&mut self) {
        self.last.clear();
        self.counts.clear();
    }

    pub(super) fn apply(&self, with: &Sampling, candidates: &mut Candidates) {
        let (repeat, presence, frequency) =
            (with.repeat_penalty, with.presence_penalty, with.frequency_penalty);
        candidates.adjust(&self.counts, |logit, n| {
            // Dividing a negative logit would make the token likelier.
            let logit = if logit > 0.0 { logit / repeat } else { logit * repeat };
            logit - (n as f32 * frequency + presence)
        });
    }
}
