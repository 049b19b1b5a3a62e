//! Options of sampling: their meanings, their ranges, and the defaults if neither user nor model sets them.

use super::chain::Link;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// How tokens are chosen. Each option says which value switches its step off. A file or text may leave any of
/// them out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Sampling {
    /// Flattens (above 1) or sharpens the distribution. 0 always takes the likeliest token, and skips all
    /// cuts.
    pub temperature: f32,
    /// Keeps only the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps only the likeliest tokens that together have this probability; 1 keeps all (Holtzman et al.,
    /// 2019).
    pub top_p: f32,
    /// Keeps only tokens at least this fraction as likely as the likeliest; 0 keeps all (Nguyen et al.,
    /// 2024).
    pub min_p: f32,
    /// Keeps only the tokens whose surprise is nearest to the expected one, until together they have this
    /// probability; 1 keeps all (Meister et al., 2022).
    pub typical_p: f32,
    /// Keeps only logits within this many standard deviations of the highest; 0 keeps all (Tang et al.,
    /// 2024).
    pub top_n_sigma: f32,
    /// How often XTC drops all but the least likely of the probable tokens, as a probability; 0 switches XTC
    /// off.
    pub xtc_probability: f32,
    /// Probability from which XTC counts a token as probable; more than 0.5 switches XTC off.
    pub xtc_threshold: f32,
    /// Divides the logits of recent tokens, or multiplies negative ones; 1 has no effect.
    pub repeat_penalty: f32,
    /// Number of previous tokens that count as recent; 0 switches all penalties off.
    pub repeat_last_n: usize,
    /// Subtracted from the logits of recent tokens; 0 has no effect.
    pub presence_penalty: f32,
    /// Subtracted from the logits of recent tokens, once per occurrence; 0 has no effect.
    pub frequency_penalty: f32,
    /// DRY: a token that would continue a repetition of n tokens loses `multiplier · base^(n −
    /// allowed_length)`; 0 switches DRY off.
    pub dry_multiplier: f32,
    /// See `dry_multiplier`.
    pub dry_base: f32,
    /// DRY ignores repetitions shorter than this.
    pub dry_allowed_length: usize,
    /// Number of previous tokens in which DRY looks for repetitions; 0 switches DRY off.
    pub dry_last_n: usize,
    /// Texts that DRY matches no repetition across.
    pub dry_breakers: Vec<String>,
    /// Mirostat, which replaces the whole chain except the temperature.
    pub mirostat: Mirostat,
    /// The surprise per token that mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// Learning rate of mirostat.
    pub mirostat_eta: f32,
    /// Added to the logits of single tokens, before all other steps.
    pub logit_bias: Vec<LogitBias>,
    /// The steps to apply, in order. A step that its option switches off is skipped.
    pub chain: Vec<Link>,
    /// Seed of the random sequence.
    pub seed: u64,
}

/// Mirostat (Basu et al., 2020): adapts the number of candidates to how surprising the text was so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mirostat {
    /// Off: the chain is used.
    #[default]
    Off,
    /// As in the paper: the number of candidates is estimated from a Zipf exponent.
    V1,
    /// All tokens up to a maximum surprise are candidates.
    V2,
}

/// A number to add to the logit of a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogitBias {
    /// Token id.
    pub token: u32,
    /// Finite, or minus infinity for a token that is never chosen. JSON has no infinity and uses `null`.
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

/// Longest window of a penalty, in tokens.
const MAX_LAST_N: usize = 1 << 20;
/// Below this, logits divided by the temperature may become infinite, and different ones equal.
const MIN_TEMPERATURE: f32 = 1e-6;
const MAX_BIASES: usize = 1 << 16;
const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_BYTES: usize = 40;

impl Sampling {
    /// Options that always take the likeliest token.
    pub fn greedy() -> Self {
        Sampling::default().with_temperature(0.0)
    }

    /// Sets the temperature, which flattens or sharpens the distribution; 0 always takes the likeliest token.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Keeps only the `top_k` likeliest tokens; 0 keeps all.
    #[must_use]
    pub fn with_top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Keeps only the likeliest tokens that together have this probability; 1 keeps all.
    #[must_use]
    pub fn with_top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets the seed of the random sequence.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks that every option is within its range.
    ///
    /// # Errors
    /// `Invalid`, naming the option and its range.
    #[doc(hidden)]
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

    /// Whether tokens are drawn at random. If not, the seed has no effect.
    #[doc(hidden)]
    pub fn is_random(&self) -> bool {
        self.temperature != 0.0
    }

    /// The links that have an effect, in order.
    pub(super) fn acting(&self) -> Vec<Link> {
        let links = match self.mirostat {
            // As in llama.cpp, the temperature then applies whether the chain names it or not.
            Mirostat::V1 | Mirostat::V2 if self.is_random() => &[Link::Temperature][..],
            _ => &self.chain,
        };
        // At temperature 0 cuts are skipped: a random step (XTC) must not change which token is the
        // likeliest.
        let counts = |link: Link| self.is_random() || matches!(link, Link::Penalties | Link::Dry);
        links.iter().copied().filter(|&link| counts(link) && link.acts(self)).collect()
    }
}

/// Lists the steps that have an effect, in order: `top-k 40, top-p 0.95, min-p 0.05, temperature 0.7`.
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
    /// Whether the link has an effect with these options.
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

    /// The link with its options, for display.
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
