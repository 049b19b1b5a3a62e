//! Sampling options: `dollop_sampling`, the model's own values, and conversion to the library's type.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::handles::{self, dollop_engine};
use crate::outputs::OutStruct;
use crate::status::dollop_status;
use runtime::sampler::{Link, LogitBias, Mirostat, Sampling};
use std::ffi::c_char;

/// `dollop_sampling.mirostat`: off; the chain is used.
pub const DOLLOP_MIROSTAT_OFF: u32 = 0;
/// Mirostat as in the paper (Basu et al., 2020).
pub const DOLLOP_MIROSTAT_V1: u32 = 1;
/// Mirostat 2.
pub const DOLLOP_MIROSTAT_V2: u32 = 2;

/// A number to add to the logit of a token.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_logit_bias {
    /// Token id.
    pub token: u32,
    /// Finite, or minus infinity for a token that is never chosen.
    pub bias: f32,
}

/// How tokens are chosen. Call `dollop_sampling_init` (defaults) or `dollop_engine_sampling` (the model's own
/// values), then change what should differ. Each field names the value that switches its step off.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_sampling {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// Seed of the random sequence. The same seed, tokens and budget give the same text.
    pub seed: u64,
    /// Flattens (above 1) or sharpens the distribution; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keeps only the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps only the likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps only tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to the expected one, until together they have this probability; 1 keeps all.
    pub typical_p: f32,
    /// Keeps only logits within this many standard deviations of the highest; 0 keeps all.
    pub top_n_sigma: f32,
    /// How often XTC drops all but the least likely of the probable tokens, as a probability; 0 switches XTC off.
    pub xtc_probability: f32,
    /// Probability from which XTC counts a token as probable; more than 0.5 switches XTC off.
    pub xtc_threshold: f32,
    /// Divides the logits of recent tokens, or multiplies negative ones; 1 has no effect.
    pub repeat_penalty: f32,
    /// Number of previous tokens that count as recent; 0 switches all penalties off.
    pub repeat_last_n: u32,
    /// Subtracted from the logits of recent tokens; 0 has no effect.
    pub presence_penalty: f32,
    /// Subtracted from the logits of recent tokens, once per occurrence; 0 has no effect.
    pub frequency_penalty: f32,
    /// DRY: a token that would continue a repetition of n tokens loses multiplier * base^(n - allowed_length); 0 switches it off.
    pub dry_multiplier: f32,
    /// See `dry_multiplier`.
    pub dry_base: f32,
    /// DRY ignores repetitions shorter than this.
    pub dry_allowed_length: u32,
    /// Number of previous tokens in which DRY looks for repetitions; 0 switches DRY off.
    pub dry_last_n: u32,
    /// A `DOLLOP_MIROSTAT_` constant. Mirostat replaces the whole chain except the temperature.
    pub mirostat: u32,
    /// The surprise per token that mirostat aims at, in bits.
    pub mirostat_tau: f32,
    /// Learning rate of mirostat.
    pub mirostat_eta: f32,
    /// Elements of `dry_breakers`, at most 64.
    pub dry_breaker_count: u32,
    /// Texts that DRY matches no repetition across; NULL for the model's own. For none: not NULL, and a count of 0.
    pub dry_breakers: *const *const c_char,
    /// Added to the logits of single tokens before all other steps; NULL for the model's own. For none, as above.
    pub logit_bias: *const dollop_logit_bias,
    /// Elements of `logit_bias`, at most 65536.
    pub logit_bias_count: usize,
    /// The steps in order, such as "penalties;top_k;top_p;temperature"; NULL for the model's own.
    pub chain: *const c_char,
}

impl Default for dollop_sampling {
    fn default() -> Self {
        numbers(&Sampling::default())
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers and raw pointers.
unsafe impl Struct for dollop_sampling {
    const NAME: &'static str = "dollop_sampling";
}

/// Saturates. Valid options are far smaller: `Sampling::validate` has lower limits.
fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The numbers of a sampling. Its lists are those of the model.
fn numbers(s: &Sampling) -> dollop_sampling {
    dollop_sampling {
        struct_size: size_of::<dollop_sampling>(),
        seed: s.seed,
        temperature: s.temperature,
        top_k: short(s.top_k),
        top_p: s.top_p,
        min_p: s.min_p,
        typical_p: s.typical_p,
        top_n_sigma: s.top_n_sigma,
        xtc_probability: s.xtc_probability,
        xtc_threshold: s.xtc_threshold,
        repeat_penalty: s.repeat_penalty,
        repeat_last_n: short(s.repeat_last_n),
        presence_penalty: s.presence_penalty,
        frequency_penalty: s.frequency_penalty,
        dry_multiplier: s.dry_multiplier,
        dry_base: s.dry_base,
        dry_allowed_length: short(s.dry_allowed_length),
        dry_last_n: short(s.dry_last_n),
        mirostat: match s.mirostat {
            Mirostat::Off => DOLLOP_MIROSTAT_OFF,
            Mirostat::V1 => DOLLOP_MIROSTAT_V1,
            Mirostat::V2 => DOLLOP_MIROSTAT_V2,
        },
        mirostat_tau: s.mirostat_tau,
        mirostat_eta: s.mirostat_eta,
        dry_breaker_count: 0,
        dry_breakers: std::ptr::null(),
        logit_bias: std::ptr::null(),
        logit_bias_count: 0,
        chain: std::ptr::null(),
    }
}

impl dollop_sampling {
    /// Converts it, with the model's own sampling for what it leaves out.
    ///
    /// # Safety
    /// The pointers are NULL, or have as many elements as their counts give and do not change during the call.
    pub(crate) unsafe fn sampling(&self, own: &Sampling) -> Result<Sampling> {
        let mut s = own.clone();
        s.seed = self.seed;
        s.temperature = self.temperature;
        s.top_k = self.top_k as usize;
        s.top_p = self.top_p;
        s.min_p = self.min_p;
        s.typical_p = self.typical_p;
        s.top_n_sigma = self.top_n_sigma;
        s.xtc_probability = self.xtc_probability;
        s.xtc_threshold = self.xtc_threshold;
        s.repeat_penalty = self.repeat_penalty;
        s.repeat_last_n = self.repeat_last_n as usize;
        s.presence_penalty = self.presence_penalty;
        s.frequency_penalty = self.frequency_penalty;
        s.dry_multiplier = self.dry_multiplier;
        s.dry_base = self.dry_base;
        s.dry_allowed_length = self.dry_allowed_length as usize;
        s.dry_last_n = self.dry_last_n as usize;
        s.mirostat = match self.mirostat {
            DOLLOP_MIROSTAT_OFF => Mirostat::Off,
            DOLLOP_MIROSTAT_V1 => Mirostat::V1,
            DOLLOP_MIROSTAT_V2 => Mirostat::V2,
            other => return Err(Failure::invalid(format!("mirostat {other}: it must be 0, 1 or 2"))),
        };
        s.mirostat_tau = self.mirostat_tau;
        s.mirostat_eta = self.mirostat_eta;
        if !self.dry_breakers.is_null() {
            // SAFETY: by this function's contract.
            s.dry_breakers = unsafe {
                arguments::texts("dry_breakers", self.dry_breakers, self.dry_breaker_count as usize)
            }?;
        }
        if !self.logit_bias.is_null() {
            // SAFETY: by this function's contract.
            let biases = unsafe { arguments::array("logit_bias", self.logit_bias, self.logit_bias_count) }?;
            s.logit_bias = biases.iter().map(|b| LogitBias { token: b.token, bias: b.bias }).collect();
        }
        // SAFETY: by this function's contract.
        if let Some(chain) = unsafe { arguments::optional_text("chain", self.chain) }? {
            s.chain = Link::chain(chain)?;
        }
        s.validate()?;
        Ok(s)
    }
}

/// Sets all fields of `sampling` to their defaults. `struct_size` must be `sizeof *sampling`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_sampling_init(
    sampling: *mut dollop_sampling,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(sampling, struct_size, |s| s.struct_size = struct_size) })
}

/// Fills `sampling` with the values that the model's file recommends, and with defaults where it has none.
/// `sampling->struct_size` must be set. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_sampling(
    engine: *const dollop_engine,
    sampling: *mut dollop_sampling,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let sampling = unsafe { OutStruct::new(sampling) }?;
        sampling.set(numbers(engine.sampling()));
        Ok(())
    })
}
