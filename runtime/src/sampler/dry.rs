//! DRY: makes tokens that would continue a repetition less likely, the more so the longer the repetition.
//!
//! After p-e-w's design (oobabooga/text-generation-webui#5677), with the numbers and breakers of llama.cpp.

use super::candidates::Candidates;
use super::chain::Link;
use super::options::Sampling;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// ln of the largest f32, to keep penalties finite.
const MAX_LN: f32 = 88.722_84;

/// Most tokens of a breaker after its first.
const MAX_TAIL: usize = 20;

/// Texts that DRY matches no repetition across, as tokens: by first token, the tokens that must follow it.
/// Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Breakers(Arc<HashMap<u32, Vec<Vec<u32>>>>);

impl Breakers {
    /// Finds every way in which tokens spell one of `texts`: within a token, or beginning at the end of one.
    /// `words` are all tokens with their texts; `ids` tokenizes the rest of a text.
    pub fn new(
        texts: &[String],
        words: impl Iterator<Item = (u32, String)>,
        ids: &dyn Fn(&str) -> Vec<u32>,
    ) -> Breakers {
        let mut all: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for (id, word) in words {
            for text in texts {
                if word.contains(text.as_str()) {
                    all.entry(id).or_default().push(Vec::new());
                    continue;
                }
                let ends =
                    (1..text.len()).filter(|&n| text.is_char_boundary(n) && word.ends_with(&text[..n]));
                for n in ends {
                    let mut tail = ids(&text[n..]);
                    tail.truncate(MAX_TAIL);
                    let tails = all.entry(id).or_default();
                    if !tails.contains(&tail) {
                        tails.push(tail);
                    }
                }
            }
        }
        Breakers(Arc::new(all))
    }

    /// Whether the token alone is a breaker.
    fn breaks(&self, token: u32) -> bool {
        self.0.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty))
    }

    /// Number of tokens after the last breaker of a text, which is given newest token first.
    fn since(&self, newest_first: &[u32]) -> usize {
        for (i, token) in newest_first.iter().enumerate() {
            let Some(tails) = self.0.get(token) else { continue };
            let follows = |tail: &&Vec<u32>| {
                tail.len() <= i && tail.iter().eq(newest_first[i - tail.len()..i].iter().rev())
            };
            if let Some(longest) = tails.iter().filter(follows).map(Vec::len).max() {
                return i - longest;
            }
        }
        newest_first.len()
    }
}

/// DRY's memory of the recent tokens. Empty if DRY is off.
#[derive(Clone, Debug)]
pub(super) struct Dry {
    last_n: usize,
    last: VecDeque<u32>,
    breakers: Breakers,
    newest_first: Vec<u32>,
    /// For each position, how many tokens from there on equal those from the newest on.
    repeats: Vec<usize>,
    /// For each token, the longest repetition that it would continue.
    longest: HashMap<u32, u32>,
}

impl Dry {
    pub(super) fn new(with: &Sampling) -> Dry {
        Dry {
            last_n: if Link::Dry.acts(with) { with.dry_last_n } else { 0 },
            last: VecDeque::new(),
            breakers: Breakers::default(),
            newest_first: Vec::new(),
            repeats: Vec::new(),
            longest: HashMap::new(),
        }
    }

    pub(super) fn set_breakers(&mut self, breakers: Breakers) {
        self.breakers = breakers;
    }

    pub(super) fn accept(&mut self, token: u32) {
        if self.last_n == 0 {
            return;
        }
        if self.last.len() == self.last_n {
            self.last.pop_front();
        }
        self.last.push_back(token);
    }

    pub(super) fn clear(&mut self) {
        self.last.clear();
    }

    pub(super) fn apply(&mut self, with: &Sampling, candidates: &mut Candidates) {
        let allowed = with.dry_allowed_length;
        self.find(allowed);
        let most = if with.dry_base > 1.000_001 { (MAX_LN / with.dry_base.ln()) as u32 } else { u32::MAX };
        candidates.adjust(&self.longest, |logit, length| {
            let beyond = (length - allowed as u32).min(most);
            logit - (f64::from(with.dry_multiplier) * f64::from(with.dry_base).powf(beyond.into())) as f32
        });
    }

    /// Finds the tokens that would continue a repetition of at least `allowed` tokens.
    fn find(&mut self, allowed: usize) {
        self.longest.clear();
        self.newest_first.clear();
        self.newest_first.extend(self.last.iter().rev());
        let s = &self.newest_first;
        let limit = self.breakers.since(s);
        if s.len() <= allowed || limit < allowed {
            return;
        }
        repeats(s, &mut self.repeats);
        for k in 1..s.len() {
            let length = self.repeats[k].min(limit);
            // The token that followed the earlier occurrence.
            let next = s[k - 1];
            if length >= allowed && !self.breakers.breaks(next) {
                let longest = self.longest.entry(next).or_default();
                *longest = (*longest).max(length as u32);
            }
        }
    }
}

/// For each position of `s`, how many elements from there on equal those at the beginning of `s` (the
/// Z-function). It takes one pass, because matches within a known repetition are already known.
fn repeats(s: &[u32], z: &mut Vec<usize>) {
    z.clear();
    z.resize(s.len(), 0);
    // The repetition found so far that ends last.
    let (mut from, mut to) = (0, 0);
    for k in 1..s.len() {
        let mut n = if k < to { z[k - from].min(to - k) } else { 0 };
        while k + n < s.len() && s[n] == s[k + n] {
            n += 1;
        }
        z[k] = n;
        if k + n > to {
            (from, to) = (k, k + n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_those_that_a_plain_search_finds() {
        let mut state = 1u32;
        let mut z = Vec::new();
        for n in 0..200 {
            let s: Vec<u32> = (0..n % 40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) % (1 + n / 40)
                })
                .collect();
            repeats(&s, &mut z);
            for k in 1..s.len() {
                assert_eq!(z[k], s.iter().zip(&s[k..]).take_while(|(a, b)| a == b).count(), "{s:?} {k}");
            }
        }
    }

    #[test]
    fn breakers_are_found_within_and_across_tokens() {
        let words = ["a", "\n", "b\n\n", "x:", "hu", "man", "n", " h"];
        let words = (0..).zip(words.map(str::to_owned));
        let ids = |text: &str| text.bytes().map(u32::from).collect();
        let breakers = Breakers::new(&["\n".into(), "human".into()], words, &ids);
        let tail = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        assert!(breakers.breaks(1) && breakers.breaks(2) && !breakers.breaks(0) && !breakers.breaks(4));
        assert_eq!(breakers.0[&4], [tail("man")]);
        assert_eq!(breakers.0[&7], [tail("uman")]);
        assert_eq!(breakers.0.len(), 4);
        assert_eq!(breakers.since(&[0, 0, 2, 0]), 2);
        // `hu`, `m`, `a`, `n`, then two more tokens.
        let text: Vec<u32> = [4].into_iter().chain(tail("man")).chain([0, 0]).rev().collect();
        assert_eq!(breakers.since(&text), 2);
        assert_eq!(breakers.since(&text[3..]), 3, "`man` is not there yet");
    }
}
