//! The numbers of sampling: what each means, what it may be, and what it is where neither user nor model says.

use super::chain::Link;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// How tokens are chosen. A number that switches a step off is named with it. A file or text may leave any of them out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Sampling {
    /// Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token, and then nothing is cut off.
    pub temperature: f32,
    /// Only the `top_k` likeliest; 0 for all.
    pub top_k: usize,
    /// Only the likeliest that together have this probability; 1 for all (Holtzman et al., 2019).
    pub top_p: f32,
    /// Only those at least this part as likely as the likeliest; 0 for all (Nguyen et al., 2024).
    pub min_p: f32,
    /// Only those whose surprise is nearest to the expected one, together of this probability; 1 for all (Meister et al.,
    /// 2022).
    pub typical_p: f32,
    /// Only logits within this many standard deviations of the highest; 0 for all (Tang et al., 2024).
    pub top_n_sigma: f32,
    /// How often all but the least likely of the probable tokens are left out (XTC); 0 for never.
    pub xtc_probability: f32,
    /// What counts as probable for XTC; above 0.5 for never.
    pub xtc_threshold: f32,
    /// Divides the logit of what appeared lately (multiplies a negative one); 1 for none.
    pub repeat_penalty: f32,
    /// How many tokens back counts as lately; 0 for no penalty.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of what appeared lately; 0 for none.
    pub presence_penalty: f32,
    /// Subtracted from the logit of what appeared lately, once for each time; 0 for none.
    pub frequency_penalty: f32,
    /// DRY: a token that would continue a repetition of n tokens loses `multiplier · base^(n − allowed_length)`; 0 for
    /// nothing.
    pub dry_multiplier: f32,
    /// See `dry_multiplier`.
    pub dry_base: f32,
    /// Repetitions shorter than this are free of DRY.
    pub dry_allowed_length: usize,
    /// How many tokens back DRY looks for repetitions; 0 for no DRY.
    pub dry_last_n: usize,
    /// Texts over which DRY follows no repetition.
    pub dry_breakers: Vec<String>,
    /// Takes the place of the whole chain but the temperature.
    pub mirostat: Mirostat,
    /// Surprise per token that mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// How fast mirostat learns.
    pub mirostat_eta: f32,
    /// Added to the logits of single tokens, before everything else.
    pub logit_bias: Vec<LogitBias>,
    /// What is applied, in order. What a number switches off is left out.
    pub chain: Vec<Link>,
    /// Start of the random sequence.
    pub seed: u64,
}

/// Mirostat (Basu et al., 2020): the number of candidates follows how surprising the text was so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mirostat {
    /// The chain.
    #[default]
    Off,
    /// As in the paper: the number of candidates is estimated from a Zipf exponent.
    V1,
    /// All tokens up to a surprise.
    V2,
}

/// What is added to the logit of a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitBias {
    /// Its id.
    pub token: u32,
    /// Finite, or minus infinity for a token that is never chosen; JSON has no infinity and says `null`.
    #[serde(deserialize_with = "bias")]
    pub bias: f32,
}

fn bias<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<f32, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f32::NEG_INFINITY))
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_last_n: 64,
            dry_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
            mirostat: Mirostat::Off,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            logit_bias: Vec::new(),
            chain: Link::ALL.to_vec(),
            seed: 0,
        }
    }
}

/// Longest memory of a penalty.
const MAX_LAST_N: usize = 1 << 20;
/// Below this, logits divided by the temperature may be infinite, and equal where they were not.
const MIN_TEMPERATURE: f32 = 1e-6;
const MAX_BIASES: usize = 1 << 16;
const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_BYTES: usize = 40;

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Sampling::default().with_temperature(0.0)
    }

    /// Flattens or sharpens the distribution; 0 always takes the likeliest token.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Only the `top_k` likeliest; 0 for all.
    #[must_use]
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Only the likeliest that together have this probability; 1 for all.
    #[must_use]
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Start of the random sequence.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// # Errors
    /// `Invalid`, naming the number and its range.
    pub fn validate(&self) -> Result<()> {
        let fail = |name: &str, value: &dyn fmt::Display, must: &str| {
            Err(Error::Invalid(format!("{name} {value}: it must be {must}")))
        };
        let t = self.temperature;
        if t != 0.0 && !(MIN_TEMPERATURE..=100.0).contains(&t) {
            return fail("temperature", &t, "0, or between 0.000001 and 100");
        }
        for (name, value) in [("top-p", self.top_p), ("typical-p", self.typical_p)] {
            if !(value > 0.0 && value <= 1.0) {
                return fail(name, &value, "above 0 and at most 1");
            }
        }
        let r = self.repeat_penalty;
        if !(0.01..=100.0).contains(&r) {
            return fail("repeat-penalty", &r, "between 0.01 and 100");
        }
        for (name, value, least, most) in [
            ("min-p", self.min_p, 0.0, 1.0),
            ("top-n-sigma", self.top_n_sigma, 0.0, 1000.0),
            ("xtc-probability", self.xtc_probability, 0.0, 1.0),
            ("xtc-threshold", self.xtc_threshold, 0.0, 1.0),
            ("presence-penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency-penalty", self.frequency_penalty, -100.0, 100.0),
            ("dry-multiplier", self.dry_multiplier, 0.0, 100.0),
            ("dry-base", self.dry_base, 1.0, 100.0),
            ("mirostat-tau", self.mirostat_tau, 0.0, 100.0),
            ("mirostat-eta", self.mirostat_eta, 0.0, 1.0),
        ] {
            if !(least..=most).contains(&value) {
                return fail(name, &value, &format!("between {least} and {most}"));
            }
        }
        for (name, n) in [
            ("repeat-last-n", self.repeat_last_n),
            ("dry-last-n", self.dry_last_n),
            ("dry-allowed-length", self.dry_allowed_length),
        ] {
            if n > MAX_LAST_N {
                return fail(name, &n, &format!("at most {MAX_LAST_N}"));
            }
        }
        if let Some(b) = self.logit_bias.iter().find(|b| b.bias.is_nan() || b.bias == f32::INFINITY) {
            return fail("logit-bias", &b.bias, "a number, or -inf");
        }
        if self.logit_bias.len() > MAX_BIASES {
            return fail("logit-bias for", &self.logit_bias.len(), &format!("at most {MAX_BIASES} tokens"));
        }
        if self.dry_breakers.len() > MAX_BREAKERS {
            return fail("dry-breakers", &self.dry_breakers.len(), &format!("at most {MAX_BREAKERS}"));
        }
        let bad = |text: &&String| text.is_empty() || text.len() > MAX_BREAKER_BYTES;
        if let Some(text) = self.dry_breakers.iter().find(bad) {
            let must = format!("a text of 1 to {MAX_BREAKER_BYTES} bytes");
            return fail("dry-breaker", &format_args!("`{text}`"), &must);
        }
        Link::check(&self.chain)
    }

    /// Whether chances decide: otherwise the seed changes nothing.
    pub fn is_random(&self) -> bool {
        self.temperature != 0.0
    }

    /// The links that change something, in order.
    pub(super) fn acting(&self) -> Vec<Link> {
        let links = match self.mirostat {
            // As in llama.cpp: the temperature then counts whether the chain names it or not.
            Mirostat::V1 | Mirostat::V2 if self.is_random() => &[Link::Temperature][..],
            _ => &self.chain,
        };
        // At temperature 0 nothing is cut: no chance may change what is likeliest.
        let counts = |link: Link| self.is_random() || matches!(link, Link::Penalties | Link::Dry);
        links.iter().copied().filter(|&link| counts(link) && link.acts(self)).collect()
    }
}

/// What changes something, in order, for people: `top-k 40, top-p 0.95, min-p 0.05, temperature 0.7`.
impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.logit_bias.is_empty() {
            parts.push(format!("logit bias of {} tokens", self.logit_bias.len()));
        }
        parts.extend(self.acting().into_iter().map(|link| link.described(self)));
        if !self.is_random() {
            parts.push("temperature 0".into());
        } else if self.mirostat != Mirostat::Off {
            let version = if self.mirostat == Mirostat::V1 { 1 } else { 2 };
            parts.push(format!("mirostat {version} (tau {}, eta {})", self.mirostat_tau, self.mirostat_eta));
        }
        if parts.is_empty() {
            parts.push("temperature 1".into());
        }
        f.write_str(&parts.join(", "))
    }
}

impl Link {
    /// Whether it changes anything with these numbers.
    pub(super) fn acts(self, with: &Sampling) -> bool {
        match self {
            Link::Penalties => {
                let none =
                    (with.repeat_penalty, with.presence_penalty, with.frequency_penalty) == (1.0, 0.0, 0.0);
                with.repeat_last_n > 0 && !none
            }
            Link::Dry => with.dry_multiplier > 0.0 && with.dry_last_n > 0,
            Link::TopNSigma => with.top_n_sigma > 0.0,
            Link::TopK => with.top_k > 0,
            Link::Typical => with.typical_p < 1.0,
            Link::TopP => with.top_p < 1.0,
            Link::MinP => with.min_p > 0.0,
            Link::Xtc => with.xtc_probability > 0.0 && with.xtc_threshold <= 0.5,
            Link::Temperature => with.temperature != 1.0,
        }
    }

    /// With its numbers, for people.
    pub(super) fn described(self, with: &Sampling) -> String {
        match self {
            Link::Penalties => format!(
                "penalties (repeat {}, presence {}, frequency {}, last {})",
                with.repeat_penalty, with.presence_penalty, with.frequency_penalty, with.repeat_last_n
            ),
            Link::Dry => format!(
                "dry (multiplier {}, base {}, allowed length {}, last {})",
                with.dry_multiplier, with.dry_base, with.dry_allowed_length, with.dry_last_n
            ),
            Link::TopNSigma => format!("top-n-sigma {}", with.top_n_sigma),
            Link::TopK => format!("top-k {}", with.top_k),
            Link::Typical => format!("typical-p {}", with.typical_p),
            Link::TopP => format!("top-p {}", with.top_p),
            Link::MinP => format!("min-p {}", with.min_p),
            Link::Xtc => {
                format!("xtc (probability {}, threshold {})", with.xtc_probability, with.xtc_threshold)
            }
            Link::Temperature => format!("temperature {}", with.temperature),
        }
    }
}
