//! Log probabilities of tokens: how requests ask for them, and their JSON in each API's form.

use crate::fields::Fields;
use crate::refusal::Refusal;
use dollop::tokenizer::Tokenizer;
use serde_json::{Map, Value as Json, json};

/// The most likeliest tokens that a request may ask for, as in OpenAI's API.
const MAX_TOP: usize = 20;
/// The same for `/v1/completions`.
const MAX_TOP_OF_TEXT: usize = 5;

/// A token's text and log probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Spelled {
    /// The token's bytes, which may end within a character.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// A token of an answer, and the likeliest tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Likely {
    /// The answer's token.
    pub token: Spelled,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<Spelled>,
}

impl Likely {
    /// Spells the tokens of an event.
    pub fn new(tokenizer: &Tokenizer, token: (u32, f32), top: &[(u32, f32)]) -> Likely {
        let spelled = |&(id, logprob): &(u32, f32)| Spelled { bytes: tokenizer.bytes(id), logprob };
        Likely { token: spelled(&token), top: top.iter().map(spelled).collect() }
    }
}

/// Reads `logprobs` and `top_logprobs` of chat APIs. Returns how many likeliest tokens each token has, or
/// `None` if no log probabilities are wanted.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields) -> Result<Option<usize>, Refusal> {
    let wanted = f.flag("logprobs")?.unwrap_or(false);
    match top(f, "top_logprobs", MAX_TOP)? {
        Some(top) if top > 0 && !wanted => Err(f.wrong("top_logprobs", "requires logprobs")),
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

/// Reads `logprobs` of `/v1/completions`, which is a number.
///
/// # Errors
/// 400, naming the field.
pub fn read_number(f: &Fields) -> Result<Option<usize>, Refusal> {
    top(f, "logprobs", MAX_TOP_OF_TEXT)
}

/// Reads `top_logprobs` and `include` of `/v1/responses`.
///
/// # Errors
/// 400, naming the field.
pub fn read_included(f: &Fields) -> Result<Option<usize>, Refusal> {
    let included = f.texts("include")?.iter().any(|name| name == "message.output_text.logprobs");
    let top = top(f, "top_logprobs", MAX_TOP)?;
    Ok(top.filter(|&top| top > 0 || included).or(included.then_some(0)))
}

fn top(f: &Fields, name: &str, most: usize) -> Result<Option<usize>, Refusal> {
    match f.count(name, 0)? {
        Some(n) if n > most => Err(f.wrong(name, format!("must be at most {most}"))),
        n => Ok(n),
    }
}

/// A token in the form of chat APIs. A broken character of `token` is U+FFFD; `bytes` has the exact bytes.
fn one(of: &Spelled) -> Json {
    json!({"token": String::from_utf8_lossy(&of.bytes), "logprob": of.logprob, "bytes": of.bytes})
}

/// Tokens in the form of chat APIs.
pub fn list(tokens: &[Likely]) -> Json {
    let each = |of: &Likely| {
        let mut json = one(&of.token);
        json["top_logprobs"] = of.top.iter().map(one).collect();
        json
    };
    tokens.iter().map(each).collect()
}

/// The `logprobs` of a choice in OpenAI's chats.
pub fn chat(tokens: &[Likely]) -> Json {
    json!({"content": list(tokens), "refusal": null})
}

/// The `logprobs` of a choice in `/v1/completions`. `offset` is the number of characters before these tokens,
/// and is advanced.
pub fn text(tokens: &[Likely], offset: &mut usize) -> Json {
    let mut offsets = Vec::with_capacity(tokens.len());
    for of in tokens {
        offsets.push(*offset);
        // Counts the bytes that begin a character.
        *offset += of.token.bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
    }
    let top = |of: &Likely| -> Json {
        let all = of.top.iter().chain([&of.token]);
        all.map(|of| (spelling(&of.bytes), of.logprob.into())).collect::<Map<_, _>>().into()
    };
    let tops: Json = match tokens.iter().any(|of| !of.top.is_empty()) {
        true => tokens.iter().map(top).collect(),
        false => Json::Null,
    };
    json!({
        "tokens": tokens.iter().map(|of| spelling(&of.token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|of| of.token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tops, "text_offset": offsets,
    })
}

/// The token's text, or its bytes as `bytes:\xe2\x82` if it ends within a character. So different tokens have
/// different names.
fn spelling(bytes: &[u8]) -> String {
    let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| format!("bytes:{}", escaped(bytes)))
}
