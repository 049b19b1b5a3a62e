//! Sorts the tokens of an answer into reasoning, answer text, and markers.
//!
//! Some vocabularies have markers around reasoning, such as `<think>` and `</think>`. A template may write
//! the opening marker, or both. Others have the markers of OpenAI's Harmony format. There, an answer is
//! several messages, each with a header that names its channel. Messages in the channel `analysis` are
//! reasoning; all others are the answer. A header may also name a tool that the message calls. Without such
//! markers, every token is part of the answer.
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>
//! ```
//!
//! Source: OpenAI, "OpenAI Harmony Response Format".

use crate::tokenizer::Tokenizer;

/// The most tokens of a header. Later tokens are shown, so that a broken header cannot hide text for ever.
const MAX_HEADER: usize = 64;

/// The most tokens of a channel's name that a line break ends.
const MAX_NAME: usize = 8;

/// The markers around reasoning, and whether a line with a channel's name follows the opening marker.
const THINKING: [(&str, &str, bool); 6] = [
    ("<think>", "</think>", false),
    ("<|channel>", "<channel|>", true),
    ("[THINK]", "[/THINK]", false),
    ("<seed:think>", "</seed:think>", false),
    ("<thinking>", "</thinking>", false),
    ("<|think_start|>", "<|think_end|>", false),
];

/// What a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Answer,
    Reasoning,
    /// A marker, or part of a header.
    Marker,
    /// The last token of the header of a tool call. Carries the header's text.
    Call(String),
}

/// Token ids of Harmony's markers.
#[derive(Clone, Copy)]
struct Markers {
    start: u32,
    channel: u32,
    message: u32,
    end: u32,
}

/// Token ids of the two markers around reasoning.
#[derive(Clone, Copy)]
struct Thinking {
    open: u32,
    close: u32,
    named: bool,
}

/// Classifies the tokens of an answer, one by one.
pub(super) struct Channels {
    /// Decodes headers; `None` if the vocabulary has no markers.
    tokenizer: Option<Tokenizer>,
    harmony: Option<Markers>,
    thinking: Vec<Thinking>,
    /// The tokens so far of the current header, after `<|start|>` or after an opening marker with a name.
    header: Option<Vec<u32>>,
    /// Whether a message has ended and no other has begun.
    between: bool,
    /// What the tokens of the current message belong to.
    part: Part,
    /// Whether markers of reasoning, or a reasoning message, came in this turn.
    reasoned: bool,
}

impl Channels {
    pub(super) fn new(tokenizer: Option<&Tokenizer>) -> Channels {
        let id = |token: &str| tokenizer?.token_id(token);
        let all = [id("<|start|>"), id("<|channel|>"), id("<|message|>"), id("<|end|>")];
        let harmony = match all {
            [Some(start), Some(channel), Some(message), Some(end)] => {
                Some(Markers { start, channel, message, end })
            }
            _ => None,
        };
        let pair = |(open, close, named): (&str, &str, bool)| {
            Some(Thinking { open: id(open)?, close: id(close)?, named })
        };
        let thinking: Vec<Thinking> = THINKING.into_iter().filter_map(pair).collect();
        let tokenizer = tokenizer.filter(|_| harmony.is_some() || !thinking.is_empty()).cloned();
        Channels {
            tokenizer,
            harmony,
            thinking,
            header: None,
            between: false,
            part: Part::Answer,
            reasoned: false,
        }
    }

    /// Reads the tokens of a prompt. A special token ends a turn of the prompt, and with it the turn's
    /// reasoning.
    pub(super) fn read(&mut self, prompt: &[u32]) {
        for &id in prompt {
            let Some(tokenizer) = &self.tokenizer else { return };
            let marks = self.thinking.iter().any(|of| id == of.open || id == of.close);
            if self.harmony.is_none() && !marks && tokenizer.is_special_id(id) {
                (self.part, self.header, self.reasoned) = (Part::Answer, None, false);
            }
            self.next(id);
        }
    }

    /// Whether the next token is part of the answer, unless it is a marker.
    pub(super) fn answers(&self) -> bool {
        self.part == Part::Answer && self.header.is_none() && !self.between
    }

    /// Whether reasoning came before the answer.
    pub(super) fn has_reasoned(&self) -> bool {
        self.reasoned
    }

    /// Classifies the next token.
    pub(super) fn next(&mut self, id: u32) -> Part {
        if let Some(of) = self.thinking.iter().find(|of| id == of.open || id == of.close) {
            let opens = id == of.open;
            self.part = if opens { Part::Reasoning } else { Part::Answer };
            self.header = (opens && of.named).then(Vec::new);
            self.reasoned = true;
            return Part::Marker;
        }
        match self.harmony {
            Some(of) => self.next_of_message(id, of),
            None => self.next_of_thought(id),
        }
    }

    /// Classifies a token that is not a marker: part of the channel's name after an opening marker, or text.
    fn next_of_thought(&mut self, id: u32) -> Part {
        let (Some(header), Some(tokenizer)) = (&mut self.header, &self.tokenizer) else {
            return self.part.clone();
        };
        header.push(id);
        if header.len() >= MAX_NAME || tokenizer.decode(header, true).contains('\n') {
            self.header = None;
        }
        Part::Marker
    }

    fn next_of_message(&mut self, id: u32, of: Markers) -> Part {
        if id == of.start {
            (self.header, self.between) = (Some(Vec::new()), false);
        } else if id == of.channel {
            self.header.get_or_insert_default().push(id);
            self.between = false;
        } else if id == of.message {
            self.between = false;
            return self.begin_message();
        } else if id == of.end {
            (self.header, self.part, self.between) = (None, Part::Answer, true);
        } else {
            match &mut self.header {
                Some(header) if header.iter().filter(|&&t| t != of.channel).count() < MAX_HEADER => {
                    header.push(id);
                }
                _ => {
                    self.header = None;
                    return self.part.clone();
                }
            }
        }
        Part::Marker
    }

    /// Begins a message. Without a channel, it is part of the answer.
    fn begin_message(&mut self) -> Part {
        let header = self.header.take().unwrap_or_default();
        let header = self.tokenizer.as_ref().map_or_else(String::new, |t| t.decode(&header, false));
        let channel = header.split_once("<|channel|>").map(|(_, channel)| channel);
        let word = |text: &str| {
            text.split(|c: char| !c.is_alphanumeric()).find(|w| !w.is_empty()) == Some("analysis")
        };
        self.part = if channel.is_some_and(word) { Part::Reasoning } else { Part::Answer };
        self.reasoned |= self.part == Part::Reasoning;
        if self.part == Part::Answer && header.contains("to=functions.") {
            return Part::Call(format!("<|start|>{header}<|message|>"));
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
        assert_eq!(got.iter().filter(|p| **p == Part::Answer).count(), 100 - MAX_HEADER);
    }

    #[test]
    fn a_message_for_a_tool_has_its_header() {
        let tokens = [&TOKENS[..], &["to=functions.f"]].concat();
        let t = tokenizer(&tokens);
        let said = ["<|start|>", "assistant", "to=functions.f", "<|channel|>", "a", "<|message|>", "b"];
        let got = parts(&t, &said);
        let header = "<|start|>assistantto=functions.f<|channel|>a<|message|>";
        assert_eq!(got[5..], [Part::Call(header.into()), Part::Answer]);
    }

    #[test]
    fn tags_end_with_the_turn_in_a_prompt() {
        use Part::{Answer, Marker, Reasoning};
        let t = tokenizer(&["<think>", "</think>", "<|im_end|>", "a", "b"]);
        let ids = |tokens: &[&str]| tokens.iter().map(|t2| t.token_id(t2).unwrap()).collect::<Vec<_>>();
        assert_eq!(parts(&t, &["<think>", "a", "</think>", "b"]), [Marker, Reasoning, Marker, Answer]);
        let mut channels = Channels::new(Some(&t));
        channels.read(&ids(&["<think>", "a", "<|im_end|>", "b"]));
        assert!(channels.answers() && !channels.has_reasoned());
        channels.read(&ids(&["<|im_end|>", "<think>"]));
        assert!(!channels.answers());
        assert_eq!(channels.next(t.token_id("a").unwrap()), Reasoning);
        assert_eq!(channels.next(t.token_id("</think>").unwrap()), Marker);
        assert!(channels.answers() && channels.has_reasoned());
    }

    #[test]
    fn without_markers_all_is_answer() {
        let t = tokenizer(&["<|start|>", "analysis", "a"]);
        assert_eq!(parts(&t, &["<|start|>", "analysis", "a"]), [const { Part::Answer }; 3]);
    }
}
