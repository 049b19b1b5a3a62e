//! Reads the sampling fields of a request, with the model's own sampling as the default. All APIs share the
//! field names; Ollama's API has them in `options`.

use crate::fields::Fields;
use crate::refusal::Refusal;
use dollop::sampler::{Link, LogitBias, Mirostat, Sampling};
use serde_json::Value as Json;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The value for a number of recent tokens of `-1`, which means all.
const ALL_TOKENS: usize = 1 << 20;

/// Reads the sampling parameters. Absent fields keep the values of `base`; an absent seed becomes a random
/// one.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields, base: &Sampling) -> Result<Sampling, Refusal> {
    let mut s = base.clone();
    let set = |names: &[&str], to: &mut f32| -> Result<(), Refusal> {
        for name in names {
            if let Some(value) = f.number(name)? {
                *to = value;
            }
        }
        Ok(())
    };
    set(&["temperature"], &mut s.temperature)?;
    set(&["top_p"], &mut s.top_p)?;
    set(&["min_p"], &mut s.min_p)?;
    set(&["typical_p", "typ_p"], &mut s.typical_p)?;
    set(&["top_n_sigma"], &mut s.top_n_sigma)?;
    set(&["xtc_probability"], &mut s.xtc_probability)?;
    set(&["xtc_threshold"], &mut s.xtc_threshold)?;
    set(&["repeat_penalty", "repetition_penalty"], &mut s.repeat_penalty)?;
    set(&["presence_penalty"], &mut s.presence_penalty)?;
    set(&["frequency_penalty"], &mut s.frequency_penalty)?;
    set(&["dry_multiplier"], &mut s.dry_multiplier)?;
    set(&["dry_base"], &mut s.dry_base)?;
    set(&["mirostat_tau"], &mut s.mirostat_tau)?;
    set(&["mirostat_eta"], &mut s.mirostat_eta)?;
    if let Some(k) = f.whole("top_k")? {
        // -1 and 0 switch top-k off.
        s.top_k = usize::try_from(k).unwrap_or(0);
    }
    let recent = |name: &str| -> Result<Option<usize>, Refusal> {
        Ok(f.whole(name)?.map(|n| usize::try_from(n).unwrap_or(ALL_TOKENS)))
    };
    s.repeat_last_n = recent("repeat_last_n")?.unwrap_or(s.repeat_last_n);
    s.dry_last_n = recent("dry_penalty_last_n")?.or(recent("dry_last_n")?).unwrap_or(s.dry_last_n);
    s.dry_allowed_length = f.count("dry_allowed_length", 0)?.unwrap_or(s.dry_allowed_length);
    for name in ["dry_sequence_breakers", "dry_breakers"] {
        if f.get(name).is_some() {
            s.dry_breakers = f.texts(name)?;
        }
    }
    s.mirostat = match f.whole("mirostat")? {
        None => s.mirostat,
        Some(0) => Mirostat::Off,
        Some(1) => Mirostat::V1,
        Some(2) => Mirostat::V2,
        Some(_) => return Err(f.wrong("mirostat", "must be 0 (off), 1 or 2")),
    };
    if f.get("samplers").is_some() {
        let link = |name: &str| serde_json::from_value::<Link>(name.trim().into());
        let names = f.texts("samplers")?.join(";");
        let links = names.split(';').filter(|name| !name.trim().is_empty()).map(link);
        s.chain = links.collect::<Result<_, _>>().map_err(|e| f.wrong("samplers", e))?;
    }
    if let Some(bias) = f.get("logit_bias") {
        s.logit_bias = biases(bias).ok_or_else(|| {
            f.wrong("logit_bias", "must be an object from token ids to numbers, or an array of such pairs")
        })?;
    }
    s.seed = match f.whole("seed")? {
        // A seed of -1 means a random one, as in Ollama and llama.cpp.
        Some(seed) if seed != -1 => seed as u64,
        _ => RandomState::new().build_hasher().finish(),
    };
    s.validate()?;
    Ok(s)
}

/// Reads OpenAI's `{"15043": -100}` or llama.cpp's `[[15043, -100]]`. In the latter, `false` bans a token.
fn biases(json: &Json) -> Option<Vec<LogitBias>> {
    let one = |token: Option<u32>, bias: &Json| {
        let bias = match bias {
            Json::Bool(false) => f32::NEG_INFINITY,
            other => other.as_f64()? as f32,
        };
        // As in OpenAI's API, -100 bans a token.
        let bias = if bias <= -100.0 { f32::NEG_INFINITY } else { bias };
        Some(LogitBias { token: token?, bias })
    };
    match json {
        Json::Object(map) => map.iter().map(|(token, bias)| one(token.parse().ok(), bias)).collect(),
        Json::Array(list) => {
            let pair = |pair: &Json| match pair.as_array()?.as_slice() {
                [token, bias] => one(token.as_u64().and_then(|t| t.try_into().ok()), bias),
                _ => None,
            };
            list.iter().map(pair).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(json: Json) -> Result<Sampling, Refusal> {
        read(&Fields::of(&json, "").unwrap(), &Sampling::default())
    }

    #[test]
    fn every_number_of_sampling_can_be_set() {
        let all = json!({
            "temperature": 0.3, "top_k": 7, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.9, "top_n_sigma": 2,
            "xtc_probability": 0.25, "xtc_threshold": 0.2, "repeat_penalty": 1.5, "repeat_last_n": 3,
            "presence_penalty": 0.5, "frequency_penalty": 0.25, "dry_multiplier": 0.8, "dry_base": 2,
            "dry_allowed_length": 3, "dry_penalty_last_n": 9, "dry_sequence_breakers": ["x"], "mirostat": 2,
            "mirostat_tau": 4, "mirostat_eta": 0.2, "logit_bias": {"5": -100, "6": 1}, "samplers": ["top_k", "temperature"],
            "seed": 11,
        });
        let (got, base) = (of(all).unwrap(), Sampling::default());
        // Compare every field through JSON. This fails if a parameter is added to the library but not to this
        // list.
        let (got, base) = (serde_json::to_value(&got).unwrap(), serde_json::to_value(&base).unwrap());
        for (name, value) in got.as_object().unwrap() {
            assert_ne!(value, &base[name], "{name} is as it was");
        }
        assert_eq!((&got["seed"], &got["logit_bias"][0]["token"]), (&json!(11), &json!(5)));
        assert_eq!(got["logit_bias"][0]["bias"], json!(null), "-100 is never");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for bad in [
            json!({"temperature": "hot"}),
            json!({"temperature": -1}),
            json!({"top_p": 7}),
            json!({"mirostat": 3}),
            json!({"logit_bias": 3}),
            json!({"samplers": ["luck"]}),
            json!({"top_k": 1.5}),
        ] {
            let name = bad.as_object().unwrap().keys().next().unwrap().replace('_', "-");
            let refusal = of(bad).unwrap_err();
            let said = refusal.message.replace('_', "-");
            assert!(said.contains(&name), "{said} does not name {name}");
        }
    }

    #[test]
    fn seeds_are_new_unless_given() {
        assert_ne!(of(json!({})).unwrap().seed, of(json!({})).unwrap().seed);
        assert_eq!(of(json!({"seed": 3})).unwrap().seed, of(json!({"seed": 3})).unwrap().seed);
    }
}
