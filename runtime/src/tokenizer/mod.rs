//! Text to token ids and back, by the `tokenizers` crate.
//!
//! A tokenizer comes from a `tokenizer.json` or from the vocabulary inside a GGUF file ([`Vocab`]); either way the result
//! is the same kind of object. Knows nothing of models or files.

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

/// More than any real `tokenizer.json` (the largest have some 35 MB).
const MAX_JSON_BYTES: usize = 256 << 20;

/// A tokenizer. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    /// Ids put before and after a text, where the object itself does not do that.
    wrap: Wrap,
    byte_tokens: ByteTokens,
}

#[derive(Clone, Copy, Debug, Default)]
struct Wrap {
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Which tokens stand for bytes rather than for characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteTokens {
    /// None, or a decoder of a kind that is not known here.
    None,
    /// Those spelled `<0x00>` to `<0xFF>` (SentencePiece with byte fallback).
    Some,
    /// All: byte-level BPE.
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
    /// From the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// `Malformed` where it describes no tokenizer.
    #[doc(hidden)]
    pub fn from_json(json: &str) -> Result<Tokenizer> {
        let malformed = |reason: String| Error::malformed("tokenizer.json", reason);
        if json.len() > MAX_JSON_BYTES {
            return Err(malformed(format!("{} bytes are more than any tokenizer has", json.len())));
        }
        // The crate indexes freely into what it reads; a file that makes it panic is a malformed file.
        let mut inner = catch_unwind(|| json.parse::<tokenizers::Tokenizer>())
            .map_err(|_| malformed("contradicts itself".into()))?
            .map_err(|e| malformed(e.to_string()))?;
        // What a trainer left of its batches. A prompt is tokenized whole, as `transformers` does unless told otherwise.
        inner.with_truncation(None).map_err(|e| malformed(e.to_string()))?.with_padding(None);
        Ok(Tokenizer::new(inner, Wrap::default()))
    }

    /// From the vocabulary of a GGUF file.
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

    /// The ids of a text. Special tokens spelled out in it are recognised; `add_special` adds those that the model wants
    /// around every text.
    ///
    /// # Errors
    /// `Invalid` where the tokenizer has no tokens for it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let failed = |e: String| Error::Invalid(format!("the tokenizer cannot encode this text: {e}"));
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special)))
            .map_err(|_| failed("it panicked".into()))?
            .map_err(|e| failed(e.to_string()))?;
        let ids = encoding.get_ids();
        let (before, after) = if add_special { (self.wrap.bos, self.wrap.eos) } else { (None, None) };
        Ok(before.into_iter().chain(ids.iter().copied()).chain(after).collect())
    }

    /// The text of some ids. Unknown ids are left out; broken characters become U+FFFD.
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

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How the vocabulary spells an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token has a meaning and no text.
    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    /// Whether an id has a meaning and no text.
    pub(crate) fn is_special_id(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| self.is_special(&token))
    }

    /// A decoder for ids that come one by one.
    pub fn stream(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }
}
