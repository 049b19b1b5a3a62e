//! The bytes that a token spells, independent of the token before it.

use super::stream::{byte_of, byte_token};
use super::{ByteTokens, Tokenizer};

/// The meaning of a token.
pub(crate) enum Spelling {
    /// Part of a text.
    Text(Vec<u8>),
    /// No text: a special token, by its name.
    Special(String),
    /// None: there is no such token.
    Nothing,
}

impl Tokenizer {
    /// Whether its tokens are bytes, so that each token's spelling is known.
    pub(crate) fn has_bytes(&self) -> bool {
        self.byte_tokens != ByteTokens::None
    }

    /// The bytes that a token spells.
    pub(crate) fn spelling(&self, id: u32) -> Spelling {
        let Some(token) = self.token(id) else { return Spelling::Nothing };
        if self.is_special(&token) {
            return Spelling::Special(token);
        }
        // An added token is spelled literally.
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Spelling::Text(token.into_bytes());
        }
        let bytes = match self.byte_tokens {
            ByteTokens::All => token.chars().map(byte_of).collect::<Option<Vec<u8>>>(),
            _ => byte_token(&token).map(|byte| vec![byte]),
        };
        Spelling::Text(match (bytes, self.byte_tokens) {
            (Some(bytes), _) => bytes,
            (None, ByteTokens::All) => token.into_bytes(),
            (None, _) => token.replace('▁', " ").into_bytes(),
        })
    }

    /// The bytes of a token, which may end within a character. For a special token, its name.
    #[doc(hidden)]
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match self.spelling(id) {
            Spelling::Text(bytes) => bytes,
            Spelling::Special(name) => name.into_bytes(),
            Spelling::Nothing => Vec::new(),
        }
    }

    /// The same tokenizer, but for text in which spelled-out special tokens have no meaning.
    pub(crate) fn literal(&self) -> Tokenizer {
        let mut inner = (*self.inner).clone();
        inner.set_encode_special_tokens(true);
        Tokenizer { inner: std::sync::Arc::new(inner), ..self.clone() }
    }
}
