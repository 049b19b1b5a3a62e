//! Converts the sampling settings of `generation_config.json` to llama.cpp's GGUF keys. The values are
//! validated when they are used.

use super::object;
use crate::error::Result;
use crate::format::{Metadata, Value, Width};
use serde_json::Value as Json;

/// Keys to copy, and their GGUF keys. They are those of llama.cpp's converter, plus `typical_p`, for which it
/// has none.
const COPIED: [(&str, &str); 14] = [
    ("temperature", "general.sampling.temp"),
    ("top_k", "general.sampling.top_k"),
    ("top_p", "general.sampling.top_p"),
    ("min_p", "general.sampling.min_p"),
    ("typical_p", "dollop.sampling.typical_p"),
    ("repetition_penalty", "general.sampling.penalty_repeat"),
    ("penalty_repeat", "general.sampling.penalty_repeat"),
    ("penalty_last_n", "general.sampling.penalty_last_n"),
    ("xtc_probability", "general.sampling.xtc_probability"),
    ("xtc_threshold", "general.sampling.xtc_threshold"),
    ("mirostat", "general.sampling.mirostat"),
    ("mirostat_tau", "general.sampling.mirostat_tau"),
    ("mirostat_eta", "general.sampling.mirostat_eta"),
    ("sequence", "general.sampling.sequence"),
];

/// Keys that are read elsewhere, or concern lengths, caches and the file itself.
const OTHERS: [&str; 14] = [
    "_from_model_config",
    "bos_token_id",
    "cache_implementation",
    "decoder_start_token_id",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "pad_token_id",
    "return_dict_in_generate",
    "trust_remote_code",
    "transformers_version",
    "use_cache",
    "chat_format",
];

/// Copies the sampling settings of a `generation_config.json`, and lists the keys that are not understood.
///
/// # Errors
/// `Malformed` if the text is not a JSON object.
pub fn sampling(m: &mut Metadata, generation: &str) -> Result<()> {
    let json = object("generation_config.json", generation)?;
    let mut unused = Vec::new();
    for (key, value) in json.iter().filter(|(_, v)| !v.is_null()) {
        let Some((_, name)) = COPIED.iter().find(|(from, _)| from == key) else {
            if !OTHERS.contains(&key.as_str()) {
                unused.push(key.clone());
            }
            continue;
        };
        match gguf(value) {
            Some(value) => m.insert(*name, value),
            None => unused.push(format!("{key} (a number is expected)")),
        }
    }
    match json.get("do_sample") {
        None | Some(Json::Null | Json::Bool(true)) => {}
        // transformers calls this greedy: temperature 0, whatever else the file says.
        Some(Json::Bool(false)) => m.insert("general.sampling.temp", 0.0f32),
        Some(_) => unused.push("do_sample (true or false is expected)".into()),
    }
    if !unused.is_empty() {
        m.insert("dollop.source.generation_unused", unused);
    }
    Ok(())
}

/// A number or string, as llama.cpp's writer would store it.
fn gguf(value: &Json) -> Option<Value> {
    match value {
        Json::Number(n) => Some(match n.as_i64().and_then(|n| i32::try_from(n).ok()) {
            Some(whole) => Value::Signed(whole.into(), Width::W32),
            None => Value::F32(n.as_f64()? as f32),
        }),
        Json::String(text) => Some(Value::from(text.as_str())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(json: &str) -> Vec<(String, Value)> {
        let mut m = Metadata::new();
        sampling(&mut m, json).unwrap();
        m.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect()
    }

    #[test]
    fn numbers_become_llama_cpps_keys() {
        let got = keys(
            r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 1, "repetition_penalty": 1.05,
                "typical_p": 0.9, "eos_token_id": [1, 2], "min_p": null, "transformers_version": "4.51.0"}"#,
        );
        let want = [
            ("general.sampling.temp", 0.6f32.into()),
            ("general.sampling.top_k", Value::Signed(20, Width::W32)),
            ("general.sampling.top_p", Value::Signed(1, Width::W32)),
            ("general.sampling.penalty_repeat", 1.05f32.into()),
            ("dollop.sampling.typical_p", 0.9f32.into()),
        ];
        assert_eq!(got, want.map(|(k, v)| (k.to_owned(), v)));
        let greedy = keys(r#"{"do_sample": false, "temperature": 0.9}"#);
        assert_eq!(greedy, [("general.sampling.temp".to_owned(), 0.0f32.into())]);
    }

    #[test]
    fn what_is_not_understood_is_listed() {
        let got = keys(
            r#"{"no_repeat_ngram_size": 3, "top_p": {"a": 1}, "do_sample": "yes", "top_k": 99999999999, "max_length": 9}"#,
        );
        let unused =
            ["no_repeat_ngram_size", "top_p (a number is expected)", "do_sample (true or false is expected)"];
        assert_eq!(got[0], ("general.sampling.top_k".to_owned(), Value::F32(99_999_999_999.0)));
        assert_eq!(got[1].1, unused.map(str::to_owned).to_vec().into());
        for text in ["", "[]", "{"] {
            let error = sampling(&mut Metadata::new(), text).unwrap_err();
            assert!(error.to_string().contains("generation_config.json"), "{error}");
        }
    }
}
