//! Options of sampling: the command line overrides the model, which overrides the built-in values. The seed comes from
//! here, because the library has no source of randomness.

use crate::Failure;
use clap::Args;
use dollop::sampler::{Link, LogitBias, Mirostat, Sampling};
use std::hash::{BuildHasher, Hasher, RandomState};

#[derive(Args, Clone)]
#[command(
    next_help_heading = "Sampling (what is not given here is as the model's file says, else as built in)"
)]
pub struct SamplingArgs {
    /// Flattens (above 1) or sharpens probabilities; 0 always takes the most likely token [built in: 0.7]
    #[arg(long = "temp", value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Start of the random sequence, to reproduce an answer [default: a new one for each run, shown after the answer]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Samplers to apply, in this order; order and names are those of llama.cpp [built in:
    /// penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]. A sampler whose numbers switch it off does
    /// nothing. At temperature 0 only penalties and dry count
    #[arg(long, value_name = "LIST", value_parser = chain)]
    samplers: Option<Chain>,
    /// Makes a token more (ID+X) or less (ID-X) likely, before all samplers; ID-inf excludes it. May be given several
    /// times
    #[arg(long, value_name = "ID±X", value_parser = logit_bias)]
    logit_bias: Vec<LogitBias>,
    /// A text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// Only tokens whose logit is within S standard deviations of the highest; 0 for all [built in: 0]
    #[arg(long = "top-n-sigma", alias = "top-nsigma", value_name = "S", help_heading = CUTS, allow_negative_numbers = true)]
    top_n_sigma: Option<f32>,
    /// Only the K most likely tokens; 0 for all [built in: 40]
    #[arg(long, value_name = "K", help_heading = CUTS)]
    top_k: Option<usize>,
    /// Only the most typical tokens (closest to the expected surprise) with this probability in total; 1 for all [built
    /// in: 1]
    #[arg(long = "typical", alias = "typical-p", value_name = "P", help_heading = CUTS, allow_negative_numbers = true)]
    typical_p: Option<f32>,
    /// Only the most likely tokens with this probability in total; 1 for all [built in: 0.95]
    #[arg(long, value_name = "P", help_heading = CUTS, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Only tokens with at least this fraction of the most likely token's probability; 0 for all [built in: 0.05]
    #[arg(long, value_name = "P", help_heading = CUTS, allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// XTC: with this probability, removes all probable tokens but the least probable of them; 0 for never [built in:
    /// 0]
    #[arg(long, value_name = "P", help_heading = CUTS, allow_negative_numbers = true)]
    xtc_probability: Option<f32>,
    /// Probability from which a token is probable for XTC; above 0.5 switches it off [built in: 0.1]
    #[arg(long, value_name = "P", help_heading = CUTS, allow_negative_numbers = true)]
    xtc_threshold: Option<f32>,

    /// Divides the logits of recent tokens; 1 for none [built in: 1]
    #[arg(long, value_name = "X", help_heading = PENALTIES, allow_negative_numbers = true)]
    repeat_penalty: Option<f32>,
    /// Subtracted from the logits of recent tokens [built in: 0]
    #[arg(long, value_name = "X", help_heading = PENALTIES, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtracted once for each recent occurrence [built in: 0]
    #[arg(long, value_name = "X", help_heading = PENALTIES, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Number of tokens that are recent, for these three; 0 for no penalty [built in: 64]
    #[arg(long, value_name = "N", help_heading = PENALTIES)]
    repeat_last_n: Option<usize>,
    /// DRY: a token that would continue a repetition of n tokens loses X · BASE^(n − ALLOWED); 0 for none [built in: 0;
    /// 0.8 is usual]
    #[arg(long, value_name = "X", help_heading = PENALTIES, allow_negative_numbers = true)]
    dry_multiplier: Option<f32>,
    /// BASE of DRY [built in: 1.75]
    #[arg(long, value_name = "X", help_heading = PENALTIES, allow_negative_numbers = true)]
    dry_base: Option<f32>,
    /// ALLOWED of DRY: shorter repetitions are not penalized [built in: 2]
    #[arg(long, value_name = "N", help_heading = PENALTIES)]
    dry_allowed_length: Option<usize>,
    /// Number of tokens that DRY looks back [built in: 64]
    #[arg(long = "dry-penalty-last-n", alias = "dry-last-n", value_name = "N", help_heading = PENALTIES)]
    dry_last_n: Option<usize>,
    /// A text across which DRY does not follow a repetition, in place of the built-in ones (line feed, colon, quotation
    /// mark, asterisk); `none` for none. May be given several times
    #[arg(long = "dry-sequence-breaker", alias = "dry-breaker", value_name = "TEXT", help_heading = PENALTIES, allow_hyphen_values = true)]
    dry_breakers: Vec<String>,

    /// Keeps the surprise of the text constant, in place of all samplers but the temperature: 0 for off, 1 or 2 for its
    /// versions [built in: 0]
    #[arg(long, value_name = "N", help_heading = MIROSTAT, value_parser = mirostat)]
    mirostat: Option<Mirostat>,
    /// Target surprise per token, in bits [built in: 5]
    #[arg(long = "mirostat-ent", alias = "mirostat-tau", value_name = "TAU", help_heading = MIROSTAT, allow_negative_numbers = true)]
    mirostat_tau: Option<f32>,
    /// Learning rate [built in: 0.1]
    #[arg(long = "mirostat-lr", alias = "mirostat-eta", value_name = "ETA", help_heading = MIROSTAT, allow_negative_numbers = true)]
    mirostat_eta: Option<f32>,
}

const CUTS: &str = "Sampling: which tokens may be chosen";
const PENALTIES: &str = "Sampling: against repetition";
const MIROSTAT: &str = "Sampling: mirostat";

/// A list that clap treats as one value.
#[derive(Clone)]
struct Chain(Vec<Link>);

fn chain(text: &str) -> Result<Chain, String> {
    Link::chain(text).map(Chain).map_err(|e| e.to_string())
}

fn mirostat(text: &str) -> Result<Mirostat, String> {
    match text {
        "0" => Ok(Mirostat::Off),
        "1" => Ok(Mirostat::V1),
        "2" => Ok(Mirostat::V2),
        _ => Err("there are 0 (off), 1 and 2".into()),
    }
}

/// `15043+1`, `15043-0.5`, `15043-inf`.
fn logit_bias(text: &str) -> Result<LogitBias, String> {
    let bias = text.find(['+', '-']).and_then(|at| {
        let (token, bias) = text.split_at(at);
        Some(LogitBias { token: token.parse().ok()?, bias: bias.parse().ok()? })
    });
    bias.ok_or_else(|| "a token's id, + or -, and a number are expected, as in 15043+1 or 15043-inf".into())
}

impl SamplingArgs {
    /// The command line's numbers over the model's, with a seed.
    ///
    /// # Errors
    /// For numbers out of their range, and options that would change nothing.
    pub fn over(&self, model: &Sampling) -> Result<Sampling, Failure> {
        fn set<T: Clone>(to: &mut T, typed: &Option<T>) {
            if let Some(value) = typed {
                *to = value.clone();
            }
        }
        let mut s = model.clone();
        set(&mut s.temperature, &self.temperature);
        set(&mut s.top_n_sigma, &self.top_n_sigma);
        set(&mut s.top_k, &self.top_k);
        set(&mut s.typical_p, &self.typical_p);
        set(&mut s.top_p, &self.top_p);
        set(&mut s.min_p, &self.min_p);
        set(&mut s.xtc_probability, &self.xtc_probability);
        set(&mut s.xtc_threshold, &self.xtc_threshold);
        set(&mut s.repeat_penalty, &self.repeat_penalty);
        set(&mut s.presence_penalty, &self.presence_penalty);
        set(&mut s.frequency_penalty, &self.frequency_penalty);
        set(&mut s.repeat_last_n, &self.repeat_last_n);
        set(&mut s.dry_multiplier, &self.dry_multiplier);
        set(&mut s.dry_base, &self.dry_base);
        set(&mut s.dry_allowed_length, &self.dry_allowed_length);
        set(&mut s.dry_last_n, &self.dry_last_n);
        set(&mut s.mirostat, &self.mirostat);
        set(&mut s.mirostat_tau, &self.mirostat_tau);
        set(&mut s.mirostat_eta, &self.mirostat_eta);
        set(&mut s.chain, &self.samplers.as_ref().map(|chain| chain.0.clone()));
        if !self.dry_breakers.is_empty() {
            s.dry_breakers = self.dry_breakers.iter().filter(|text| *text != "none").cloned().collect();
        }
        s.logit_bias.extend_from_slice(&self.logit_bias);
        s.seed = self.seed.unwrap_or_else(random);
        s.validate()?;
        self.check(&s)?;
        Ok(s)
    }

    /// Rejects an option whose sampler is not applied, which would be ignored silently.
    fn check(&self, s: &Sampling) -> Result<(), Failure> {
        let typed = [
            ("--temp", Link::Temperature, self.temperature.is_some_and(|t| t != 0.0)),
            ("--top-n-sigma", Link::TopNSigma, self.top_n_sigma.is_some()),
            ("--top-k", Link::TopK, self.top_k.is_some()),
            ("--typical", Link::Typical, self.typical_p.is_some()),
            ("--top-p", Link::TopP, self.top_p.is_some()),
            ("--min-p", Link::MinP, self.min_p.is_some()),
            ("--xtc-probability", Link::Xtc, self.xtc_probability.is_some()),
            ("--repeat-penalty", Link::Penalties, self.repeat_penalty.is_some()),
            ("--presence-penalty", Link::Penalties, self.presence_penalty.is_some()),
            ("--frequency-penalty", Link::Penalties, self.frequency_penalty.is_some()),
            ("--dry-multiplier", Link::Dry, self.dry_multiplier.is_some()),
            ("--samplers", Link::Penalties, self.samplers.is_some()),
        ];
        for (option, link, _) in typed.into_iter().filter(|(.., typed)| *typed) {
            if s.mirostat != Mirostat::Off && link != Link::Temperature {
                let how = "mirostat takes the place of all samplers but the temperature (--mirostat 0 switches it off)";
                return Err(format!("{option} would change nothing: {how}").into());
            }
            if s.mirostat == Mirostat::Off && option != "--samplers" && !s.chain.contains(&link) {
                let how = format!("the samplers do not name {}", link.name());
                return Err(format!("{option} would change nothing: {how}").into());
            }
        }
        Ok(())
    }

    /// Whether the seed is random, not from the command line.
    pub fn is_random(&self) -> bool {
        self.seed.is_none()
    }
}

/// A random seed, short enough to be typed. The standard library's hasher takes its keys from the system.
fn random() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    fn typed(args: &[&str], model: &Sampling) -> Result<Sampling, Failure> {
        Line::parse_from([&["dollop"], args].concat()).sampling.over(model)
    }

    #[test]
    fn what_is_typed_is_over_the_models_which_is_over_the_built_in() {
        let model = Sampling::default().with_temperature(0.6).with_top_k(20);
        let with = typed(&["--top-k", "5", "--seed", "9"], &model).unwrap();
        assert_eq!(with, model.clone().with_top_k(5).with_seed(9));
        let seeds: Vec<u64> = (0..4).map(|_| typed(&[], &model).unwrap().seed).collect();
        assert!(seeds.iter().any(|s| s != &seeds[0]), "{seeds:?}");
        let args = ["--logit-bias", "3+1.5", "--logit-bias", "4-inf", "--dry-sequence-breaker", "none"];
        let with = typed(&[&args[..], &["--samplers", "top_k;temperature"]].concat(), &model).unwrap();
        assert_eq!(with.logit_bias[0], LogitBias { token: 3, bias: 1.5 });
        assert_eq!(with.logit_bias[1], LogitBias { token: 4, bias: f32::NEG_INFINITY });
        assert!(with.dry_breakers.is_empty());
        assert_eq!(with.chain, [Link::TopK, Link::Temperature]);
    }

    #[test]
    fn what_would_change_nothing_is_an_error() {
        let mut mirostat = Sampling::default();
        mirostat.mirostat = Mirostat::V2;
        for (args, model, word) in [
            (&["--samplers", "top_k", "--min-p", "0.1"][..], Sampling::default(), "min_p"),
            (&["--mirostat", "1", "--top-p", "0.9"], Sampling::default(), "mirostat"),
            (&["--samplers", "top_k"], mirostat.clone(), "mirostat"),
            (&["--samplers", "top_k", "--temp", "1.5"], Sampling::default(), "temperature"),
        ] {
            let Failure(error) = typed(args, &model).unwrap_err();
            assert!(error.contains(word) && error.contains("change nothing"), "{args:?}: {error}");
        }
        assert!(typed(&["--mirostat", "0", "--top-p", "0.9"], &mirostat).is_ok());
        assert!(typed(&["--mirostat", "2", "--temp", "0.9"], &Sampling::default()).is_ok());
        assert!(typed(&["--samplers", "top_k", "--temp", "0"], &Sampling::default()).is_ok());
        for text in ["3", "x+1", "3+x", "+1", "3+nan+1"] {
            assert!(logit_bias(text).is_err(), "{text}");
        }
    }
}
