//! `/tokenize`, `/detokenize` and `/apply-template`, in llama.cpp's form.

use super::chat;
use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::request::Input;
use crate::service::Service;
use serde_json::{Value as Json, json};

/// Tokenizes a text.
///
/// # Errors
/// 400, naming the field.
pub fn tokenize(service: &Service, json: &Json) -> Result<Json, Refusal> {
    let f = Fields::of(json, "")?;
    let text = f.need_text("content")?;
    let tokenizer = service.engine.tokenizer()?;
    let ids = tokenizer.encode(text, f.flag("add_special")?.unwrap_or(false))?;
    if !f.flag("with_pieces")?.unwrap_or(false) {
        return Ok(json!({"tokens": ids}));
    }
    let piece = |id: u32| json!({"id": id, "piece": tokenizer.decode(&[id], false)});
    Ok(json!({"tokens": ids.into_iter().map(piece).collect::<Vec<_>>()}))
}

/// Converts token ids to text.
///
/// # Errors
/// 400, naming the field.
pub fn detokenize(service: &Service, json: &Json) -> Result<Json, Refusal> {
    let f = Fields::of(json, "")?;
    let list = f.list("tokens")?.ok_or_else(|| f.wrong("tokens", "is missing"))?;
    let vocab = service.engine.info().vocab as u64;
    let id = |v: &Json| v.as_u64().filter(|&id| id < vocab).map(|id| id as u32);
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    let ids = ids.ok_or_else(|| f.wrong("tokens", format!("must be integers below {vocab}")))?;
    Ok(json!({"content": service.engine.tokenizer()?.decode(&ids, false)}))
}

/// Renders a conversation with the model's chat template. The body is that of `/v1/chat/completions`.
///
/// # Errors
/// 400, naming the field.
pub fn apply_template(service: &Service, json: &Json) -> Result<Json, Refusal> {
    let request = chat::read(&Fields::of(json, "")?, service.sampling())?;
    let Input::Chat(conversation) = &request.input else {
        return Err(Refusal::internal("the conversation is missing"));
    };
    Ok(json!({"prompt": service.render(conversation)?}))
}
