//! Channels of an answer: a model whose vocabulary has Harmony's markers writes messages, each with a header that names its channel.
//! What stands in the channel `analysis` is reasoning; the rest is the answer. Headers and markers are neither.
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
//! ```
//!
//! The format: OpenAI, "OpenAI Harmony Response Format". Where a vocabulary has no such markers, all is answer.

use crate::tokenizer::Tokenizer;

/// Tokens of a header at most. What follows is shown, so that a broken header hides no text for ever.
const MAX_HEADER: usize = 64;

/// What a token is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Answer,
    Reasoning,
    /// A marker, or a header.
    Marker,
}

/// Ids of the markers.
struct Markers {
    start: u32,
    channel: u32,
    message: u32,
    end: u32,
}

/// Reads an answer, token by token.
pub(super) struct Channels {
    /// What spells headers, and the markers; `None` where the vocabulary has none.
    markers: Option<(Tokenizer, Markers)>,
    /// The header that is being read: its tokens behind the last `<|channel|>`.
    header: Option<Vec<u32>>,
    /// Of the message in hand.
    part: Part,
}

impl Channels {
    pub(super) fn new(tokenizer: Option<&Tokenizer>) -> Channels {
        let id = |token: &str| tokenizer?.token_id(token);
        let all = [id("<|start|>"), id("<|channel|>"), id("<|message|>"), id("<|end|>")];
        let markers = match (tokenizer, all) {
            (Some(tokenizer), [Some(start), Some(channel), Some(message), Some(end)]) => {
                Some((tokenizer.clone(), Markers { start, channel, message, end }))
            }
            _ => None,
        };
        Channels { markers, header: None, part: Part::Answer }
    }

    /// What the next token is part of.
    pub(super) fn next(&mut self, id: u32) -> Part {
        let Some((tokenizer, of)) = &self.markers else { return Part::Answer };
        if id == of.start || id == of.channel {
            self.header = Some(Vec::new());
        } else if id == of.message {
            // A message without a channel is an answer.
            let header = self.header.take().unwrap_or_default();
            let name = tokenizer.decode(&header, true);
            let name = name.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty());
            self.part = if name == Some("analysis") { Part::Reasoning } else { Part::Answer };
        } else if id == of.end {
            (self.header, self.part) = (None, Part::Answer);
        } else {
            match &mut self.header {
                Some(header) if header.len() < MAX_HEADER => header.push(id),
                _ => {
                    self.header = None;
                    return self.part;
                }
            }
        }
        Part::Marker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Vocab;

    fn tokenizer(tokens: &[&str]) -> Tokenizer {
        let vocab = Vocab {
            model: "gpt2".into(),
            tokens: tokens.iter().map(|&t| t.to_owned()).collect(),
            types: tokens.iter().map(|t| if t.starts_with("<|") { 3 } else { 1 }).collect(),
            ..Vocab::default()
        };
        Tokenizer::from_vocab(&vocab).unwrap()
    }

    const TOKENS: [&str; 9] =
        ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "analysis", "final", "assistant", "a", "b"];

    fn parts(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<Part> {
        let mut channels = Channels::new(Some(tokenizer));
        tokens.iter().map(|t| channels.next(tokenizer.token_id(t).unwrap())).collect()
    }

    #[test]
    fn reasoning_is_what_stands_in_its_channel() {
        use Part::{Answer, Marker, Reasoning};
        let t = tokenizer(&TOKENS);
        let said = ["<|channel|>", "analysis", "<|message|>", "a", "b", "<|end|>", "<|start|>", "assistant"];
        let answered = ["<|channel|>", "final", "<|message|>", "b"];
        let want = [Marker, Marker, Marker, Reasoning, Reasoning, Marker, Marker, Marker];
        let got = parts(&t, &[&said[..], &answered].concat());
        assert_eq!(got[..8], want);
        assert_eq!(got[8..], [Marker, Marker, Marker, Answer]);
        // Text without headers, and a message without a channel.
        assert_eq!(parts(&t, &["a", "<|message|>", "a"]), [Answer, Marker, Answer]);
    }

    #[test]
    fn a_header_without_an_end_hides_no_text_for_ever() {
        let t = tokenizer(&TOKENS);
        let said: Vec<&str> = std::iter::once("<|channel|>").chain(std::iter::repeat_n("a", 100)).collect();
        let got = parts(&t, &said);
        assert_eq!(got.iter().filter(|&&p| p == Part::Answer).count(), 100 - MAX_HEADER);
    }

    #[test]
    fn without_markers_all_is_answer() {
        let t = tokenizer(&["<|start|>", "analysis", "a"]);
        assert_eq!(parts(&t, &["<|start|>", "analysis", "a"]), [Part::Answer; 3]);
    }
}
