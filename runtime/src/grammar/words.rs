//! Gives `llguidance` the vocabulary as a byte trie, and tokenizes texts for it.

use crate::error::{Error, Result};
use crate::tokenizer::{Spelling, Tokenizer};
use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The longest token in the trie, which allows up to 1,024 bytes. Longer tokens are left out, for example
/// long runs of spaces in some vocabularies.
const MAX_TOKEN_BYTES: usize = 512;

/// A character that no text contains. Some tokenizers put a space before a text. With this character first,
/// the space goes before it, and the text's own tokens are unchanged.
const GUARD: char = '\u{2}';

pub(super) struct Env {
    trie: TokTrie,
    /// A tokenizer without special tokens: a text that spells one is tokenized as text.
    plain: Tokenizer,
}

impl Env {
    /// # Errors
    /// `Unsupported` if the tokenizer's tokens are not byte strings.
    pub(super) fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Env> {
        if !tokenizer.has_bytes() {
            return Err(Error::unsupported(
                "constraints need a tokenizer whose tokens are bytes: byte-level BPE, or SentencePiece with byte fallback",
            ));
        }
        let words: Vec<Vec<u8>> = (0..vocab as u32)
            .map(|id| match tokenizer.spelling(id) {
                Spelling::Text(bytes) if bytes.len() <= MAX_TOKEN_BYTES => bytes,
                Spelling::Special(name) if name.len() < MAX_TOKEN_BYTES && !name.is_empty() => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
                }
                _ => Vec::new(),
            })
            .collect();
        let ends: Vec<u32> = ends.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let info = TokRxInfo::new(vocab as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let trie = catch_unwind(AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words);
            if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) }
        }))
        .map_err(|_| {
            Error::unsupported("this vocabulary cannot be used for constraints: it contradicts itself")
        })?;
        Ok(Env { trie, plain: tokenizer.literal() })
    }

    /// Tokenizes a text; `None` if the tokens would spell anything else.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        let spells = |ids: &[u32], text: &str| self.trie.decode_raw(ids) == text.as_bytes();
        let ids = self.plain.encode(text, false).ok()?;
        if spells(&ids, text) {
            return Some(ids);
        }
        let ids = self.plain.encode(&format!("{GUARD}{text}"), false).ok()?;
        let guard = ids.iter().position(|&id| self.trie.token(id).contains(&(GUARD as u8)))?;
        let rest = &ids[guard + 1..];
        spells(rest, text).then(|| rest.to_vec())
    }
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(|text| self.encode(text)).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
