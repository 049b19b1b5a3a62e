//! Text to token ids and back, with the `tokenizers` crate.
//!
//! A tokenizer is created from a `tokenizer.json` or from the vocabulary in a GGUF file ([`Vocab`]); both
//! give the same kind of object. Independent of models and files.

mod pretokenizer;
#[cfg(feature = "grammar")]
mod spelling;
mod stream;
mod vocab;

#[cfg(feature = "grammar")]
pub(crate) use spelling::Spelling;
pub use stream::Detokenizer;
#[doc(hidden)]
pub use vocab::Vocab;

use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokenizers::DecoderWrapper;

/// Larger than any real `tokenizer.json` (the largest have some 35 MB).
const MAX_JSON_BYTES: usize = 256 << 20;

/// A tokenizer. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Ids to add before and after a text, if the object itself does not.
    wrap: Wrap,
    byte_tokens: ByteTokens,
}

#[derive(Clone, Copy, Debug, Default)]
struct Wrap {
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Which tokens are bytes instead of characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteTokens {
    /// None, or an unknown kind of decoder.
    None,
    /// Tokens spelled `<0x00>` to `<0xFF>` (SentencePiece with byte fallback).
    Some,
    /// All tokens: byte-level BPE.
    All,
}

impl ByteTokens {
    fn of(decoder: Option<&DecoderWrapper>) -> ByteTokens {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => ByteTokens::All,
            Some(DecoderWrapper::ByteFallback(_)) => ByteTokens::Some,
            Some(DecoderWrapper::Sequence(steps)) => match steps.get_decoders() {
                [one] => ByteTokens::of(Some(one)),
                steps if steps.iter().any(|s| matches!(s, DecoderWrapper::ByteFallback(_))) => {
                    ByteTokens::Some
                }
                _ => ByteTokens::None,
            },
            _ => ByteTokens::None,
        }
    }
}

impl Tokenizer {
    /// Creates a tokenizer from the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// `Malformed` if it does not describe a tokenizer.
    #[doc(hidden)]
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        let malformed = |reason: String| Error::malformed("tokenizer.json", reason);
        if json.len() > MAX_JSON_BYTES {
            return Err(malformed(format!("{} bytes are more than any tokenizer has", json.len())));
        }
        // The crate indexes unchecked into what it reads; a file that makes it panic is malformed.
        let mut inner = catch_unwind(|| json.parse::<tokenizers::Tokenizer>())
            .map_err(|_| malformed("contradicts itself".into()))?
            .map_err(|e| malformed(e.to_string()))?;
        // Settings left over from training. A prompt is tokenized as a whole, like the default of `transformers`.
        inner.with_truncation(None).map_err(|e| malformed(e.to_string()))?.with_padding(None);
        Ok(Tokenizer::new(inner, Wrap::default()))
    }

    /// Creates a tokenizer from the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// `Unsupported` for another kind of model or pre-tokenizer, `Malformed` for lists that contradict each other.
    #[doc(hidden)]
    pub fn from_vocab(vocab: &Vocab) -> Result<Tokenizer> {
        let wrap = Wrap {
            bos: vocab.bos.filter(|_| vocab.adds_bos()),
            eos: vocab.eos.filter(|_| vocab.add_eos.unwrap_or(false)),
        };
        let inner = catch_unwind(AssertUnwindSafe(|| vocab.build()))
            .map_err(|_| Error::malformed("tokenizer.ggml.tokens", "the vocabulary contradicts itself"))??;
        Ok(Tokenizer::new(inner, wrap))
    }

    fn new(inner: tokenizers::Tokenizer, wrap: Wrap) -> Tokenizer {
        let byte_tokens = ByteTokens::of(inner.get_decoder());
        Tokenizer { inner: Arc::new(inner), wrap, byte_tokens }
    }

    /// The ids of a text. Special tokens spelled out in it are recognised; `add_special` adds those that the
    /// model expects around every text.
    ///
    /// # Errors
    /// `Invalid` if the tokenizer has no tokens for it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let failed = |e: String| Error::Invalid(format!("the tokenizer cannot encode this text: {e}"));
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special)))
            .map_err(|_| failed("it panicked".into()))?
            .map_err(|e| failed(e.to_string()))?;
        let ids = encoding.get_ids();
        let (before, after) = if add_special { (self.wrap.bos, self.wrap.eos) } else { (None, None) };
        Ok(before.into_iter().chain(ids.iter().copied()).chain(after).collect())
    }

    /// The text of the ids. Unknown ids are left out; invalid characters become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        catch_unwind(AssertUnwindSafe(|| self.inner.decode(ids, skip_special)))
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default()
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// An id's spelling in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token has a meaning but no text.
    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    /// Whether an id has a meaning but no text.
    pub(crate) fn is_special_id(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.is_special(&token))
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }
}
