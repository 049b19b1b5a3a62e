//! The vocabulary as a tree of bytes, and texts in tokens, as `llguidance` asks for them.

use crate::error::{Error, Result};
use crate::tokenizer::{Spelling, Tokenizer};
use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest token of the tree, which takes 1,024 at most. Longer ones are left out, as a token of nothing but spaces in some vocabularies.
const MAX_TOKEN_BYTES: usize = 512;

/// A character that no text has: before a text that gets a space by its tokenizer, it takes the space.
const GUARD: char = '\u{2}';

pub(super) struct Env {
    trie: TokTrie,
    /// Takes texts as they are: a special token that is spelled out in one is no special token.
    plain: Tokenizer,
}

impl Env {
    /// # Errors
    /// `Unsupported` for a tokenizer whose tokens are no bytes.
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
        .map_err(|_| Error::unsupported("constraints over this vocabulary: it contradicts itself"))?;
        Ok(Env { trie, plain: tokenizer.literal() })
    }

    /// The tokens of a text, where they spell just it.
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
