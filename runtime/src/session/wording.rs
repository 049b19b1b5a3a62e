//! From ids to events: which part of the answer a token belongs to, what text became showable, whether a stop string was met.

use super::channels::{Channels, Part};
use super::event::{Event, GenerateOptions, Outcome};
use super::stop::StopFilter;
use crate::tokenizer::{Detokenizer, Tokenizer};

pub(super) struct Wording {
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    channels: Channels,
    filter: StopFilter,
    /// Special tokens that are part of the text: those around calls.
    shown: Vec<u32>,
    /// Whether calls are part of the answer, with their headers.
    calls: bool,
    /// Nothing but white space was said since the reasoning ended: it belongs to the marker.
    blank: bool,
}

impl Wording {
    /// A prompt may end within a message: that of a conversation which slid does, and a template may begin the reasoning.
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

    /// Whether the next token, if it is no marker, is part of the answer.
    pub(super) fn answers(&self) -> bool {
        self.channels.answers()
    }

    /// What a token adds to the answer, and whether a stop string was met.
    pub(super) fn hear(&mut self, id: u32, outcome: &mut Outcome) -> (Event, bool) {
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

    /// Whole characters that a token completes, or its name where that is shown.
    fn piece(&mut self, id: u32) -> String {
        let Some(detokenizer) = &mut self.detokenizer else { return String::new() };
        if self.shown.contains(&id) {
            let name = self.tokenizer.as_ref().and_then(|t| t.token(id)).unwrap_or_default();
            // One that is no special token has its text already.
            let text = detokenizer.push(id);
            return if text.is_empty() { detokenizer.finish() + &name } else { text };
        }
        detokenizer.push(id)
    }

    /// The end of the text, where some was held back.
    pub(super) fn rest(&mut self) -> String {
        let rest = self.detokenizer.as_mut().map_or_else(String::new, Detokenizer::finish);
        self.filter.push(&rest).0 + &self.filter.finish()
    }

    /// The answer.
    pub(super) fn text(self) -> String {
        self.filter.text
    }
}
