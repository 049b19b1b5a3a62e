//! Reads a model's recommended sampling: llama.cpp's keys `general.sampling.*`, and our own for settings that
//! these lack.
//!
//! Broken recommendations do not stop a model from running. The built-in value is used instead, and `dollop
//! inspect` reports it.

use super::keys::number;
use crate::error::Result;
use crate::format::{Metadata, Value};
use crate::sampler::{Link, Mirostat, Sampling};

/// Prefixes of keys about sampling.
const PREFIXES: [&str; 2] = ["general.sampling.", "dollop.sampling."];

/// The sampling that a file recommends.
#[derive(Clone, Debug, Default)]
pub struct Advice {
    /// The built-in numbers, overridden by those of the file.
    pub sampling: Sampling,
    /// Number of keys used.
    pub used: usize,
    /// Unused keys with the reason, one per line.
    pub notes: Vec<String>,
}

/// Reads the recommendation from a file's keys.
pub fn advice(meta: &Metadata) -> Advice {
    let mut advice = Advice::default();
    for (key, value) in meta.iter() {
        let Some(name) = PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix)) else { continue };
        let mut with = advice.sampling.clone();
        match set(&mut with, name, value).and_then(|()| with.validate().map_err(|e| e.to_string())) {
            Ok(()) => {
                advice.sampling = with;
                advice.used += 1;
            }
            Err(why) => advice.notes.push(format!("the key {key} is not used: {why}")),
        }
    }
    advice
}

/// Sets one field. The error text says what is wrong with the value.
fn set(with: &mut Sampling, name: &str, value: &Value) -> Result<(), String> {
    let number = || number(value).filter(|_| !matches!(value, Value::Bool(_)));
    let float = || number().map(|x| x as f32).ok_or_else(|| "a number is expected".to_owned());
    // llama.cpp uses negative numbers for "off".
    let count = || match number() {
        Some(n) if n.fract() == 0.0 && n.abs() < 1e9 => Ok(n.max(0.0) as usize),
        _ => Err("a whole number is expected".to_owned()),
    };
    match name {
        "temp" => with.temperature = float()?,
        "top_k" => with.top_k = count()?,
        "top_p" => with.top_p = float()?,
        "min_p" => with.min_p = float()?,
        "typical_p" => with.typical_p = float()?,
        "xtc_probability" => with.xtc_probability = float()?,
        "xtc_threshold" => with.xtc_threshold = float()?,
        "penalty_last_n" => with.repeat_last_n = count()?,
        "penalty_repeat" => with.repeat_penalty = float()?,
        "mirostat" => {
            with.mirostat = match count()? {
                0 => Mirostat::Off,
                1 => Mirostat::V1,
                2 => Mirostat::V2,
                n => return Err(format!("there is no mirostat {n}")),
            }
        }
        "mirostat_tau" => with.mirostat_tau = float()?,
        "mirostat_eta" => with.mirostat_eta = float()?,
        "sequence" => match value {
            Value::String(text) => with.chain = Link::chain(text).map_err(|e| e.to_string())?,
            _ => return Err("names of samplers are expected".into()),
        },
        _ => return Err("this version does not know it".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Width;

    fn read(entries: &[(&str, Value)]) -> Advice {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "llama");
        entries.iter().for_each(|(key, value)| meta.insert(*key, value.clone()));
        advice(&meta)
    }

    #[test]
    fn the_models_numbers_take_the_place_of_the_built_in_ones() {
        let none = read(&[]);
        assert_eq!((none.sampling, none.used, none.notes.len()), (Sampling::default(), 0, 0));
        let some = read(&[
            ("general.sampling.temp", 0.6f32.into()),
            // llama.cpp's converter writes it as a signed integer.
            ("general.sampling.top_k", Value::Signed(20, Width::W32)),
            ("general.sampling.penalty_last_n", Value::Signed(-1, Width::W32)),
            ("general.sampling.penalty_repeat", 1u32.into()),
            ("general.sampling.mirostat", Value::Signed(2, Width::W32)),
            ("general.sampling.sequence", "top_k;temperature".into()),
            ("dollop.sampling.typical_p", Value::F64(0.9)),
        ]);
        let want = Sampling {
            temperature: 0.6,
            top_k: 20,
            repeat_last_n: 0,
            mirostat: Mirostat::V2,
            chain: vec![Link::TopK, Link::Temperature],
            typical_p: 0.9,
            ..Sampling::default()
        };
        assert_eq!((some.sampling, some.used, some.notes), (want, 7, Vec::new()));
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        for (key, value, word) in [
            ("general.sampling.temp", Value::from("hot"), "a number"),
            ("general.sampling.temp", Value::Bool(true), "a number"),
            ("general.sampling.temp", Value::F32(f32::NAN), "between"),
            ("general.sampling.temp", Value::F32(-1.0), "between"),
            ("general.sampling.top_k", Value::F32(1.5), "whole number"),
            ("general.sampling.top_k", Value::Unsigned(u64::MAX, Width::W64), "whole number"),
            ("general.sampling.top_p", Value::F64(f64::INFINITY), "at most 1"),
            ("general.sampling.penalty_last_n", Value::Unsigned(99_999_999, Width::W32), "at most"),
            ("general.sampling.mirostat", Value::Unsigned(3, Width::W8), "no mirostat 3"),
            ("general.sampling.sequence", Value::from("top_k;infill"), "`infill`"),
            ("general.sampling.sequence", Value::from(vec![1u64]), "names"),
            ("general.sampling.smoothing", Value::F32(0.1), "does not know"),
        ] {
            let told = read(&[(key, value.clone()), ("general.sampling.min_p", 0.1f32.into())]);
            assert_eq!(told.sampling, Sampling { min_p: 0.1, ..Sampling::default() }, "{key} {value:?}");
            assert!(told.notes.len() == 1 && told.notes[0].contains(key), "{:?}", told.notes);
            assert!(told.notes[0].contains(word), "{:?}", told.notes);
        }
    }
}
