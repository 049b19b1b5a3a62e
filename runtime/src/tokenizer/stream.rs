//! Decodes one id at a time. It never returns part of a character, and never loses text after an invalid one.
//!
//! Vocabularies for arbitrary text have tokens that are bytes. Their bytes are decoded here, as they arrive: a
//! character is returned when it is complete, and bytes that cannot begin one become U+FFFD at once. All other text
//! is a difference of decoded windows, because a token's text can depend on the token before (a leading space).

use super::{ByteTokens, Tokenizer};

/// The most ids that a decoder of an unknown kind may hold back; then they are returned as they are.
const MAX_HELD: usize = 8;

/// Turns a stream of ids into pieces of text.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The ids of the last piece, then those not returned yet. So the cost per id is constant.
    window: Vec<u32>,
    /// The number of ids that belong to the last piece.
    shown: usize,
    bytes: Utf8,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Detokenizer { tokenizer, window: Vec::new(), shown: 0, bytes: Utf8::default() }
    }

    /// Takes an id; returns the text that it completes, which may be empty. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> String {
        let Some(token) = self.tokenizer.token(id).filter(|t| !self.tokenizer.is_special(t)) else {
            return String::new();
        };
        match self.tokenizer.byte_tokens {
            ByteTokens::All => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                self.bytes.push(bytes.as_deref().unwrap_or(token.as_bytes()))
            }
            ByteTokens::Some => match byte_token(&token) {
                Some(byte) => {
                    // The decoder needs a token before the next one: any byte will do.
                    let before = self.advance(false);
                    (self.window, self.shown) = (vec![id], 1);
                    before + &self.bytes.push(&[byte])
                }
                None => {
                    let broken = self.bytes.finish();
                    self.window.push(id);
                    broken + &self.advance(false)
                }
            },
            ByteTokens::None => {
                self.window.push(id);
                self.advance(self.window.len() - self.shown < MAX_HELD)
            }
        }
    }

    /// The text that is still held back, with invalid characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.advance(false) + &self.bytes.finish()
    }

    /// The text of the window after what was returned. With `wait`, text that later ids may change is held back.
    fn advance(&mut self, wait: bool) -> String {
        let before = self.tokenizer.decode(&self.window[..self.shown], true);
        let now = self.tokenizer.decode(&self.window, true);
        let new = match now.strip_prefix(&before) {
            Some(new) if wait && new.ends_with('\u{fffd}') => return String::new(),
            Some(new) => new.to_owned(),
            None if wait => return String::new(),
            // Later ids change how earlier ones decode: the returned text stays, and these are decoded alone.
            None => self.tokenizer.decode(&self.window[self.shown..], true),
        };
        if !new.is_empty() {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
        }
        new
    }
}

/// Bytes that are decoded to characters.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character, at most three bytes.
    begun: Vec<u8>,
}

impl Utf8 {
    /// The text that the bytes complete: [`String::from_utf8_lossy`] of all bytes so far, however they are split.
    fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let (mut rest, mut out) = (&all[..], String::new());
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    out.push_str(valid);
                    return out;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("checked just now"));
                    let Some(broken) = e.error_len() else {
                        self.begun = after.to_vec();
                        return out;
                    };
                    out.push('\u{fffd}');
                    rest = &after[broken..];
                }
            }
        }
    }

    fn finish(&mut self) -> String {
        if std::mem::take(&mut self.begun).is_empty() { String::new() } else { '\u{fffd}'.into() }
    }
}

/// The byte of a character in a byte-level vocabulary: printable bytes are themselves, the others are
/// numbered from U+0100 on (GPT-2).
pub(super) fn byte_of(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => n,
        n @ 0x100..=0x120 => n - 0x100,
        n @ 0x121..=0x142 => n - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of a token like `<0xE2>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Vocab;

    #[test]
    fn bytes_of_a_byte_level_vocabulary_are_those_of_the_package() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<u8> = alphabet.iter().map(|&c| byte_of(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!([byte_of('Ġ'), byte_of('Ċ'), byte_of('a'), byte_of('Ń')], [32, 10, 97, 0xad].map(Some));
        assert_eq!([byte_of(' '), byte_of('€'), byte_of('\u{ad}')], [None; 3]);
    }

    #[test]
    fn pieces_join_to_the_whole_however_bytes_are_split() {
        // Every pattern of lead, continuation, invalid and ASCII bytes of length 5.
        let some = [b'a', 0x80, 0xc3, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0xff];
        for n in 0..some.len().pow(5) {
            let all: Vec<u8> = (0..5).map(|i| some[n / some.len().pow(i) % some.len()]).collect();
            for split in 0..=5 {
                let mut utf8 = Utf8::default();
                let text = utf8.push(&all[..split]) + &utf8.push(&all[split..]) + &utf8.finish();
                assert_eq!(text, String::from_utf8_lossy(&all), "{all:x?} split at {split}");
            }
        }
    }

    fn stream(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<String> =
            tokens.iter().map(|t| stream.push(tokenizer.token_id(t).unwrap())).collect();
        pieces.push(stream.finish());
        pieces
    }

    /// Invalid bytes are returned as U+FFFD and no later text is lost, in both kinds of vocabularies with bytes.
    #[test]
    fn what_follows_broken_bytes_is_shown() {
        let map = |b: u8| (0..0x180).filter_map(char::from_u32).find(|&c| byte_of(c) == Some(b)).unwrap();
        let level = Vocab {
            model: "gpt2".into(),
            tokens: (0..=255).map(|b| map(b).to_string()).chain(["hello".into()]).collect(),
            ..Vocab::default()
        };
        let tokenizer = Tokenizer::from_vocab(&level).unwrap();
        let spelled: Vec<String> =
            [0xc3, 0xc4, 0xc5, 0xf0, 0x9f, 0x98, 0x80, 0xc3].map(|b| map(b).to_string()).into();
        let mut tokens: Vec<&str> = spelled.iter().map(String::as_str).collect();
        tokens.push("hello");
        let pieces = stream(&tokenizer, &tokens);
        assert_eq!(pieces, ["", "\u{fffd}", "\u{fffd}", "\u{fffd}", "", "", "😀", "", "\u{fffd}hello", ""]);

        let mut pieces = vec!["<unk>".to_owned(), "▁hello".into(), "▁".into(), "hello".into()];
        pieces.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
        let types = [2, 1, 1, 1].into_iter().chain(std::iter::repeat_n(6, 256)).collect();
        let scores = vec![0.0; pieces.len()];
        let sentence = Vocab { model: "llama".into(), tokens: pieces, types, scores, ..Vocab::default() };
        let tokenizer = Tokenizer::from_vocab(&sentence).unwrap();
        let smile = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"];
        let pieces = stream(&tokenizer, &[&smile[..], &["<0xE2>", "<0x82>", "▁hello"]].concat());
        assert_eq!(pieces, ["", "", "", "😀", "", "", "\u{fffd} hello", ""]);
        let pieces = stream(&tokenizer, &["▁hello", "<0xE2>", "<0x41>", "▁hello", "▁", "hello", "<0xC3>"]);
        assert_eq!(pieces, ["hello", "", "\u{fffd}A", " hello", " ", "hello", "", "\u{fffd}"]);
        assert_eq!(
            stream(&tokenizer, &["▁", "<0x41>", "hello"]).concat(),
            tokenizer.decode(&["▁", "<0x41>", "hello"].map(|t| tokenizer.token_id(t).unwrap()), true)
        );
    }
}
