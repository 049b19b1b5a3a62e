//! Decoding one id at a time without ever showing part of a character.

use super::Tokenizer;

/// Ids held back for a character to complete. The longest have four bytes; a model that emits more broken bytes than
/// this is shown what they are.
const MAX_HELD: usize = 8;

/// Turns a stream of ids into pieces of text.
///
/// An id's text can depend on the ids before it (a leading space, bytes of one character), so pieces are differences
/// of decoded windows: the window begins at the last piece boundary, which keeps the cost per id constant.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The ids of the last piece, then those not shown yet.
    window: Vec<u32>,
    /// How many of them belong to the last piece.
    shown: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Detokenizer { tokenizer, window: Vec::new(), shown: 0 }
    }

    /// Takes an id; returns the whole characters that it completes, perhaps none. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        self.advance(self.window.len() - self.shown < MAX_HELD)
    }

    /// What is still held back, broken characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.advance(false)
    }

    fn advance(&mut self, wait: bool) -> String {
        let before = self.tokenizer.decode(&self.window[..self.shown], true);
        let now = self.tokenizer.decode(&self.window, true);
        let Some(new) = now.strip_prefix(&before).filter(|new| !new.is_empty()) else { return String::new() };
        if wait && new.ends_with('\u{fffd}') {
            return String::new();
        }
        let new = new.to_owned();
        self.window.drain(..self.shown);
        self.shown = self.window.len();
        new
    }
}
