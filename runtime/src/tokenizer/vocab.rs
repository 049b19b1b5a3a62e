//! The vocabulary of a GGUF file as a `tokenizers` object.

use super::pretokenizer;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use tokenizers::decoders::{
    byte_fallback::ByteFallback, byte_level::ByteLevel, fuse::Fuse, sequence, strip::Strip,
};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper};

/// Token types of GGUF (`tokenizer.ggml.token_type`).
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNKNOWN: i64 = 2;
const BYTE: i64 = 6;

/// The model that spells text like SentencePiece, but lists its merges.
const SPACED: &str = "gemma4";

/// A GGUF file's description of its tokenizer (`tokenizer.ggml.*`).
#[derive(Clone, Debug, Default)]
pub struct Vocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece) or `gemma4` (like SentencePiece, but with listed merges).
    pub model: String,
    /// The pre-tokenizer of a byte-level BPE.
    pub pre: Option<String>,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// SentencePiece scores by id.
    pub scores: Vec<f32>,
    /// Token types by id; if empty, all are normal.
    pub types: Vec<i64>,
    /// BPE merges, best first: two tokens with a space between.
    pub merges: Vec<String>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// Whether every text begins with `bos`; by default SentencePiece texts do.
    pub add_bos: Option<bool>,
    /// Whether every text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece texts begin with a space; by default they do.
    pub add_space_prefix: Option<bool>,
}

impl Vocab {
    pub(super) fn adds_bos(&self) -> bool {
        self.add_bos.unwrap_or(self.model == "llama" || self.model == SPACED)
    }

    pub(super) fn build(&self) -> Result<tokenizers::Tokenizer> {
        let field = "tokenizer.ggml.tokens";
        let n = self.tokens.len();
        if n == 0 || u32::try_from(n).is_err() {
            return Err(Error::malformed(field, format!("{n} tokens make no vocabulary")));
        }
        if !self.types.is_empty() && self.types.len() != n {
            return Err(Error::malformed(
                "tokenizer.ggml.token_type",
                format!("{} types for {n} tokens", self.types.len()),
            ));
        }
        let mut ids = HashMap::with_capacity(n);
        for (id, token) in self.tokens.iter().enumerate() {
            // Merges refer to the first of two equal tokens; writers pad with equal dummies.
            ids.entry(token.as_str()).or_insert(id as u32);
        }
        let mut tokenizer = match self.model.as_str() {
            "gpt2" => self.byte_level(&ids)?,
            "llama" => self.sentence_piece(&ids, self.merges_by_score(&ids)?)?,
            SPACED => self.sentence_piece(&ids, self.listed_merges(&ids)?)?,
            other => {
                let what = format!(
                    "tokenizer model `{other}` is not supported; supported are gpt2 (byte-level BPE), llama (SentencePiece) and {SPACED}"
                );
                return Err(Error::unsupported(what));
            }
        };
        let of_type = |wanted: i64| {
            self.types
                .iter()
                .zip(&self.tokens)
                .filter(move |(t, s)| **t == wanted && !s.is_empty())
                .map(|(_, s)| s)
        };
        let special: Vec<_> =
            of_type(CONTROL).chain(of_type(UNKNOWN)).map(|t| AddedToken::from(t.clone(), true)).collect();
        let defined: Vec<_> =
            of_type(USER_DEFINED).map(|t| AddedToken::from(t.clone(), false).normalized(false)).collect();
        let failed = |e: tokenizers::Error| Error::malformed(field, e.to_string());
        tokenizer.add_special_tokens(special).map_err(failed)?;
        tokenizer.add_tokens(defined).map_err(failed)?;
        Ok(tokenizer)
    }

    fn vocabulary(&self, ids: &HashMap<&str, u32>) -> impl Iterator<Item = (String, u32)> {
        ids.iter().map(|(t, &id)| ((*t).to_owned(), id)).collect::<Vec<_>>().into_iter()
    }

    /// The merges listed in the file.
    fn listed_merges(&self, ids: &HashMap<&str, u32>) -> Result<Vec<(String, String)>> {
        let field = "tokenizer.ggml.merges";
        let mut merges = Vec::with_capacity(self.merges.len());
        for merge in &self.merges {
            // Tokens contain no space, but may begin with another kind of space.
            let (a, b) = merge
                .split_once(' ')
                .filter(|(a, b)| !a.is_empty() && !b.is_empty())
                .ok_or_else(|| Error::malformed(field, format!("`{merge}` is not two tokens")))?;
            if !ids.contains_key(format!("{a}{b}").as_str()) || !ids.contains_key(a) || !ids.contains_key(b) {
                return Err(Error::malformed(
                    field,
                    format!("`{merge}` names a token that is not in the vocabulary"),
                ));
            }
            merges.push((a.to_owned(), b.to_owned()));
        }
        Ok(merges)
    }

    fn byte_level(&self, ids: &HashMap<&str, u32>) -> Result<tokenizers::Tokenizer> {
        let field = "tokenizer.ggml.merges";
        let merges = self.listed_merges(ids)?;
        let pre = self.pre.as_deref().unwrap_or("default");
        let style = pretokenizer::find(pre)?;
        let bpe = BPE::builder()
            .vocab_and_merges(self.vocabulary(ids).collect::<Vocabulary>(), merges)
            .ignore_merges(style.ignore_merges)
            .build()
            .map_err(|e| Error::malformed(field, e.to_string()))?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(style.pre_tokenizer()));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        if style.nfc {
            tokenizer
                .with_normalizer(Some(tokenizers::normalizers::NFC))
                .map_err(|e| Error::malformed(field, e.to_string()))?;
        }
        Ok(tokenizer)
    }

    /// For text with spaces spelled as characters, and bytes for characters without a token.
    fn sentence_piece(
        &self,
        ids: &HashMap<&str, u32>,
        merges: Vec<(String, String)>,
    ) -> Result<tokenizers::Tokenizer> {
        let field = "tokenizer.ggml.tokens";
        let unknown = self.types.iter().position(|&t| t == UNKNOWN).map(|i| self.tokens[i].clone());
        let mut bpe = BPE::builder()
            .vocab_and_merges(self.vocabulary(ids).collect::<Vocabulary>(), merges)
            .byte_fallback(self.types.contains(&BYTE) || self.model == SPACED)
            .fuse_unk(true);
        if let Some(unknown) = unknown {
            bpe = bpe.unk_token(unknown);
        }
        let mut tokenizer =
            tokenizers::Tokenizer::new(bpe.build().map_err(|e| Error::malformed(field, e.to_string()))?);
        let failed = |e: tokenizers::Error| Error::malformed(field, e.to_string());
        let space: NormalizerWrapper = Replace::new(" ", "▁").map_err(failed)?.into();
        let prefix = self.add_space_prefix.unwrap_or(self.model != SPACED);
        let steps = if prefix { vec![Prepend::new("▁".into()).into(), space] } else { vec![space] };
        tokenizer.with_normalizer(Some(Normalizers::new(steps))).map_err(failed)?;
        let mut decoders: Vec<DecoderWrapper> = vec![
            Replace::new("▁", " ").map_err(failed)?.into(),
            ByteFallback::new().into(),
            Fuse::new().into(),
        ];
        if prefix {
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_decoder(Some(sequence::Sequence::new(decoders)));
        Ok(tokenizer)
    }

    /// The merges that a SentencePiece model implies: every split of a token into two tokens, best score
    /// first, in the order of Hugging Face's converter.
    fn merges_by_score(&self, ids: &HashMap<&str, u32>) -> Result<Vec<(String, String)>> {
        let field = "tokenizer.ggml.scores";
        if self.scores.len() != self.tokens.len() {
            return Err(Error::malformed(
                field,
                format!("{} scores for {} tokens", self.scores.len(), self.tokens.len()),
            ));
        }
        if self.scores.iter().any(|s| s.is_nan()) {
            return Err(Error::malformed(field, "a score is not a number"));
        }
        struct Merge<'a> {
            score: f32,
            left: &'a str,
            right: &'a str,
        }
        /// Longer tokens are not split: their parts would be as long as any word.
        const MAX_TOKEN_BYTES: usize = 1024;
        let ordinary: HashSet<&str> = (0..self.tokens.len())
            .filter(|&i| !matches!(self.types.get(i), Some(&(CONTROL | UNKNOWN | BYTE))))
            .map(|i| self.tokens[i].as_str())
            .collect();
        let mut merges = Vec::new();
        for (token, &score) in
            self.tokens.iter().zip(&self.scores).filter(|(t, _)| ordinary.contains(t.as_str()))
        {
            let first = merges.len();
            for (at, _) in token.char_indices().skip(1).take_while(|_| token.len() <= MAX_TOKEN_BYTES) {
                let (left, right) = token.split_at(at);
                if ids.contains_key(left) && ids.contains_key(right) {
                    merges.push(Merge { score, left, right });
                }
            }
            merges[first..].sort_by_key(|m| (ids[m.left], ids[m.right]));
        }
        let length = |m: &Merge| (m.left.chars().count(), m.right.chars().count());
        merges.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| length(b).cmp(&length(a))));
        Ok(merges.into_iter().map(|m| (m.left.to_owned(), m.right.to_owned())).collect())
    }
}

type Vocabulary = ahash::AHashMap<String, u32>;
