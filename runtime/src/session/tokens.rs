//! What a file says of its tokens: the tokenizer, and ids with a meaning.

use crate::error::{Error, Result};
use crate::format::Metadata;
use crate::tokenizer::{Tokenizer, Vocab};

/// Ids with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Whether texts that are no chat begin with it.
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
        .map(|v| u32::try_from(v).map_err(|_| Error::malformed(key, format!("{v} is no token"))))
        .transpose()
}

pub(super) fn tokenizer(meta: &Metadata) -> Result<Option<Tokenizer>> {
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

/// Tokens that end a turn in the templates of many models, whatever the file calls its end of text.
const TURN_ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
];

pub(super) fn special_tokens(meta: &Metadata, tokenizer: Option<&Tokenizer>) -> Result<SpecialTokens> {
    let (bos, eos) = (id(meta, "tokenizer.ggml.bos_token_id")?, id(meta, "tokenizer.ggml.eos_token_id")?);
    let mut ends: Vec<u32> = eos.into_iter().chain(id(meta, "tokenizer.ggml.eot_token_id")?).collect();
    let listed = meta.u64s("dollop.tokenizer.eot_token_ids")?.unwrap_or_default();
    ends.extend(listed.into_iter().filter_map(|v| u32::try_from(v).ok()));
    ends.extend(TURN_ENDS.iter().filter_map(|t| tokenizer?.token_id(t)));
    ends.sort_unstable();
    ends.dedup();
    let add_bos = meta
        .bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(meta.str("tokenizer.ggml.model")? == Some("llama"));
    Ok(SpecialTokens { bos, add_bos, eos, ends })
}
