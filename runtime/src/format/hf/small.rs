//! Reads special tokens and the chat template from the small files beside the weights.

use super::{object, of_text};
use crate::error::{Error, Result};
use crate::format::Metadata;
use serde_json::{Map, Value as Json};

/// The small files beside a model's weights; missing ones are `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmallFiles<'a> {
    /// `config.json`.
    pub config: &'a str,
    /// `tokenizer_config.json`.
    pub tokenizer: Option<&'a str>,
    /// `special_tokens_map.json`, for keys that `tokenizer_config.json` lacks.
    pub special: Option<&'a str>,
    /// `generation_config.json`.
    pub generation: Option<&'a str>,
}

/// Copies the token ids and flags that GGUF has keys for. `token_id` looks up a token's text in the
/// tokenizer.
///
/// # Errors
/// `Malformed`, naming the file, if one is not JSON. Ignoring it could lose the token that ends answers.
pub fn special_tokens(
    m: &mut Metadata,
    files: SmallFiles<'_>,
    token_id: &dyn Fn(&str) -> Option<u32>,
) -> Result<()> {
    let parse = |name: &'static str, text: Option<&str>| -> Result<(&'static str, Map<String, Json>)> {
        Ok((name, text.map_or(Ok(Map::new()), |t| object(name, t))?))
    };
    let config = ("config.json", of_text(files.config)?);
    let tokenizer = parse("tokenizer_config.json", files.tokenizer)?;
    let special = parse("special_tokens_map.json", files.special)?;
    let generation = parse("generation_config.json", files.generation)?;
    for (key, flag) in [("bos", "add_bos_token"), ("eos", "add_eos_token")] {
        let mut id = None;
        for (name, json) in [&tokenizer, &special] {
            let spelled = spelling(name, json, &format!("{key}_token"))?;
            id = id.or(spelled.and_then(token_id));
        }
        for (name, json) in [&generation, &config] {
            id = id.or(ids(name, json, &format!("{key}_token_id"))?.first().copied());
        }
        if let Some(id) = id {
            m.insert(format!("tokenizer.ggml.{key}_token_id"), id);
        }
        match tokenizer.1.get(flag) {
            None | Some(Json::Null) => {}
            Some(Json::Bool(add)) => m.insert(format!("tokenizer.ggml.{flag}"), *add),
            Some(_) => return Err(wrong_kind(tokenizer.0, flag, "true or false")),
        }
    }
    for (name, json) in [&generation, &config] {
        let ends = ids(name, json, "eos_token_id")?;
        if !ends.is_empty() {
            m.insert("dollop.tokenizer.eot_token_ids", ends.into_iter().map(u64::from).collect::<Vec<_>>());
            break;
        }
    }
    Ok(())
}

fn wrong_kind(file: &str, key: &str, want: &str) -> Error {
    Error::malformed(format!("{file}: {key}"), format!("{want} is expected"))
}

/// A token's text: a string, or the `content` of an object.
fn spelling<'a>(file: &str, json: &'a Map<String, Json>, key: &str) -> Result<Option<&'a str>> {
    match json.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(token) => match token.as_str().or_else(|| token["content"].as_str()) {
            Some(text) => Ok(Some(text)),
            None => Err(wrong_kind(file, key, "a token")),
        },
    }
}

/// An id or a list of ids; empty if the key is missing.
fn ids(file: &str, json: &Map<String, Json>, key: &str) -> Result<Vec<u32>> {
    let id = |v: &Json| {
        let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
        id.ok_or_else(|| wrong_kind(file, key, "the number of a token"))
    };
    match json.get(key) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Array(all)) => all.iter().map(id).collect(),
        // Some writers use −1 for "no token".
        Some(one) if one.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(one) => Ok(vec![id(one)?]),
    }
}

/// The chat template in a `tokenizer_config.json` or `chat_template.json`: a string, or the entry named
/// `default` in a list.
///
/// # Errors
/// `Malformed` if the text is not JSON.
pub fn chat_template(name: &str, config: &str) -> Result<Option<String>> {
    let json = object(name, config)?;
    match json.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(s)) => Ok(Some(s.clone())),
        // The other templates in a list are for tools or documents, and are selected by name.
        Some(Json::Array(all)) if all.iter().all(|t| t["template"].is_string()) => {
            let default = all.iter().find(|t| t["name"] == "default");
            Ok(default.and_then(|t| t["template"].as_str()).map(str::to_owned))
        }
        Some(_) => Err(wrong_kind(name, "chat_template", "a text, or a list of templates with names,")),
    }
}
