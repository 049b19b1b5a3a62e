//! Reads the tokenizer and the special token ids from a file's keys.

use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::tokenizer::{Tokenizer, Vocab};

/// Token ids with a special meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Whether plain text (not a chat) begins with it.
    pub add_bos: bool,
    /// End of text.
    pub eos: Option<u32>,
    /// All ids that end an answer.
    pub ends: Vec<u32>,
}

impl SpecialTokens {
    /// Whether this id ends an answer.
    pub fn ends_turn(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

fn id(meta: &Metadata, key: &str) -> Result<Option<u32>> {
    meta.u64(key)?
        .map(|v| u32::try_from(v).map_err(|_| Error::malformed(key, format!("{v} is not a token id"))))
        .transpose()
}

/// The tokenizer in a file, if the file has one.
///
/// # Errors
/// `Malformed` or `Unsupported`, as for [`Tokenizer`].
pub(crate) fn tokenizer(meta: &Metadata) -> Result<Option<Tokenizer>> {
    if let Some(json) = meta.str("tokenizer.huggingface.json")? {
        return Tokenizer::from_json(json).map(Some);
    }
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let (Some(model), Some(tokens)) = (meta.str(&key("model"))?, meta.strings(&key("tokens"))?) else {
        return Ok(None);
    };
    let vocab = Vocab {
        model: model.to_owned(),
        pre: meta.str(&key("pre"))?.map(str::to_owned),
        tokens: tokens.to_vec(),
        scores: meta.f32s(&key("scores"))?.unwrap_or_default().to_vec(),
        types: meta.i64s(&key("token_type"))?.unwrap_or_default(),
        merges: meta.strings(&key("merges"))?.unwrap_or_default().to_vec(),
        bos: id(meta, &key("bos_token_id"))?,
        eos: id(meta, &key("eos_token_id"))?,
        add_bos: meta.bool(&key("add_bos_token"))?,
        add_eos: meta.bool(&key("add_eos_token"))?,
        add_space_prefix: meta.bool(&key("add_space_prefix"))?,
    };
    Tokenizer::from_vocab(&vocab).map(Some)
}

/// Tokens that end a turn in many models' templates, in addition to the file's end of text.
const TURN_ENDS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<turn|>",
    "<|return|>",
    "<|call|>",
    // Follows a tool call. The model must not write the tool's response itself.
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];

/// Ends a message. If the vocabulary also has `<|return|>`, it does not end the turn: a gpt-oss answer has
/// several messages.
const MESSAGE_END: &str = "<|end|>";

/// Reads the special token ids.
///
/// # Errors
/// `Malformed` if a key has the wrong type.
pub(crate) fn special_tokens(meta: &Metadata, tokenizer: Option<&Tokenizer>) -> Result<SpecialTokens> {
    let (bos, eos) = (id(meta, "tokenizer.ggml.bos_token_id")?, id(meta, "tokenizer.ggml.eos_token_id")?);
    let mut ends: Vec<u32> = eos
        .into_iter()
        .chain(id(meta, "tokenizer.ggml.eot_token_id")?)
        .chain(id(meta, "tokenizer.ggml.eom_token_id")?)
        .collect();
    let listed = meta.u64s("dollop.tokenizer.eot_token_ids")?.unwrap_or_default();
    ends.extend(listed.into_iter().filter_map(|v| u32::try_from(v).ok()));
    let id_of = |token: &str| tokenizer?.token_id(token);
    ends.extend(TURN_ENDS.iter().filter_map(|t| id_of(t)));
    if let (Some(_), Some(message_end)) = (id_of("<|return|>"), id_of(MESSAGE_END)) {
        ends.retain(|&id| id != message_end);
    }
    ends.sort_unstable();
    ends.dedup();
    let add_bos = meta
        .bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(matches!(meta.str("tokenizer.ggml.model")?, Some("llama" | "gemma4")));
    Ok(SpecialTokens { bos, add_bos, eos, ends })
}

/// Keys (after `tokenizer.ggml.`) that we read, or that name tokens for tasks that we do not have (search,
/// infilling).
const KNOWN: [&str; 24] = [
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
    "bos_token_id",
    "cls_token_id",
    "eom_token_id",
    "eos_token_id",
    "eot_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_pre_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    "fim_suf_token_id",
    "mask_token_id",
    "merges",
    "model",
    "padding_token_id",
    "pre",
    "scores",
    "seperator_token_id",
    "token_type",
    "tokens",
    "unknown_token_id",
];

/// Unused tokenizer settings of a file, as lines for people.
///
/// # Errors
/// `Malformed` if a key has the wrong type.
pub(crate) fn notes(meta: &Metadata) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Blocks {
        truncation: Option<serde::de::IgnoredAny>,
        padding: Option<serde::de::IgnoredAny>,
    }
    let mut notes = Vec::new();
    if let Some(json) = meta.str("tokenizer.huggingface.json")? {
        // Loading the tokenizer reports JSON errors; here they are ignored.
        let blocks = serde_json::from_str(json).unwrap_or(Blocks { truncation: None, padding: None });
        for (name, there) in [("truncation", blocks.truncation), ("padding", blocks.padding)] {
            if there.is_some() {
                notes.push(format!("tokenizer.json: {name} is not applied, prompts are tokenized whole"));
            }
        }
    }
    let unknown = |key: &&str| key.strip_prefix("tokenizer.ggml.").is_some_and(|k| !KNOWN.contains(&k));
    let unused: Vec<&str> = meta.iter().map(|(key, _)| key).filter(unknown).collect();
    if !unused.is_empty() {
        notes.push(format!("keys of the tokenizer that are not used: {}", unused.join(", ")));
    }
    Ok(notes)
}

/// Whether the file has a tokenizer.
pub(crate) fn has_tokenizer(meta: &Metadata) -> Result<bool> {
    Ok(meta.str("tokenizer.huggingface.json")?.is_some() || meta.strings("tokenizer.ggml.tokens")?.is_some())
}

/// The error for a model without a tokenizer.
pub(crate) fn no_tokenizer() -> Error {
    Error::unsupported("the model has no tokenizer; put its tokenizer.json beside it and convert it again")
}

/// The error for a model without a chat template.
pub(crate) fn no_template() -> Error {
    Error::unsupported(
        "the model has no chat template, so it cannot chat; continue plain text with `dollop run --raw`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_ends_no_turn() {
        let ends = |tokens: &[&str]| {
            let tokens: Vec<String> = tokens.iter().map(|&t| t.to_owned()).collect();
            let types = vec![3; tokens.len()];
            let vocab = Vocab { model: "gpt2".into(), tokens, types, ..Vocab::default() };
            let tokenizer = Tokenizer::from_vocab(&vocab).unwrap();
            special_tokens(&Metadata::default(), Some(&tokenizer)).unwrap().ends
        };
        assert_eq!(ends(&["<|start|>", "<|end|>", "a"]), [1]);
        assert_eq!(ends(&["<|start|>", "<|end|>", "<|call|>", "<|return|>"]), [2, 3]);
    }
}
