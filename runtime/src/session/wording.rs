//! Turns token ids into events: sorts them into reasoning and answer, decodes their text, and finds stop
//! strings.

use super::channels::{Channels, Part};
use super::event::{Event, GenerateOptions, Outcome};
use super::stop::StopFilter;
use crate::tokenizer::{Detokenizer, Tokenizer};

pub(super) struct Wording {
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    channels: Channels,
    filter: StopFilter,
    /// Special tokens that are shown as text: the markers of tool calls.
    shown: Vec<u32>,
    /// Whether tool calls, with their headers, are part of the answer.
    calls: bool,
    /// Whether only white space came since the reasoning ended. It belongs to the marker, and is dropped.
    blank: bool,
}

impl Wording {
    /// Reads the prompt, because it may end within a message: after the context slid, or if the template
    /// opens the reasoning.
    pub(super) fn new(tokenizer: Option<&Tokenizer>, prompt: &[u32], options: &GenerateOptions) -> Wording {
        let mut channels = Channels::new(tokenizer);
        channels.read(prompt);
        let id = |marker: &&str| tokenizer?.token_id(marker);
        Wording {
            tokenizer: tokenizer.cloned(),
            detokenizer: tokenizer.map(|t| t.stream()),
            blank: channels.has_reasoned(),
            channels,
            filter: StopFilter::new(&options.stop),
            shown: options.tools.iter().flat_map(|of| of.markers()).filter_map(id).collect(),
            calls: options.tools.is_some(),
        }
    }

    /// Whether the next token is part of the answer, unless it is a marker.
    pub(super) fn answers(&self) -> bool {
        self.channels.answers()
    }

    /// Returns a token's event, and whether its text completes a stop string.
    pub(super) fn push(&mut self, id: u32, outcome: &mut Outcome) -> (Event, bool) {
        let text = match self.channels.next(id) {
            Part::Answer => self.piece(id),
            Part::Call(header) if self.calls => header,
            Part::Reasoning => {
                let text = self.piece(id);
                let text = if outcome.reasoning.is_empty() { text.trim_start() } else { &text };
                outcome.reasoning.push_str(text);
                return (Event::Reasoning { id, text: text.to_owned() }, false);
            }
            Part::Marker | Part::Call(_) => {
                self.blank = self.channels.has_reasoned();
                return (Event::Reasoning { id, text: String::new() }, false);
            }
        };
        let text = if self.blank { text.trim_start() } else { &text };
        self.blank &= text.is_empty();
        let (text, met) = self.filter.push(text);
        (Event::Token { id, text }, met)
    }

    /// The text that a token completes, in whole characters. For a special token that is shown, its name.
    fn piece(&mut self, id: u32) -> String {
        let Some(detokenizer) = &mut self.detokenizer else { return String::new() };
        if self.shown.contains(&id) {
            let name = self.tokenizer.as_ref().and_then(|t| t.token(id)).unwrap_or_default();
            // A token that is not special already has its text.
            let text = detokenizer.push(id);
            return if text.is_empty() { detokenizer.finish() + &name } else { text };
        }
        detokenizer.push(id)
    }

    /// Ends the text. Returns what was held back.
    pub(super) fn rest(&mut self) -> String {
        let rest = self.detokenizer.as_mut().map_or_else(String::new, Detokenizer::finish);
        self.filter.push(&rest).0 + &self.filter.finish()
    }

    /// The answer's text.
    pub(super) fn text(self) -> String {
        self.filter.text
    }
}
