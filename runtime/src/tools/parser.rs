//! Separates tool calls from text in an answer that arrives in pieces.

use super::form::Form;
use super::named::Named;
use super::object::Object;
use super::reader::{Flow, Halt, Piece, Reader};
use super::tags::Tags;
use super::values::Values;
use super::{Format, functions};
use serde_json::{Map, Value as Json};
use std::collections::HashMap;

/// Reads an answer in pieces, and separates tool calls from text. What begins like a call but is not one
/// remains text.
pub struct Parser {
    form: Form,
    /// The parameter schemas of each tool, by parameter name.
    properties: HashMap<String, Map<String, Json>>,
    reader: Reader,
    place: Place,
    /// Whether the calls are a bracketed list.
    listed: bool,
    /// Whether a call was read, with no text after it.
    called: bool,
}

enum Place {
    Text,
    /// After the marker that begins calls.
    Begin,
    Call(Call),
    /// Between calls of a bracketed list.
    Between,
    /// After the last call.
    Tail,
}

enum Call {
    Object(Object),
    Named(Named),
    Tags(Tags),
    Values(Values),
}

impl Parser {
    /// `tools` is the list given to the template. Its schemas separate numbers from strings in forms that
    /// write both alike.
    pub fn new(format: Format, tools: &Json) -> Parser {
        let of = |(name, parameters): (&str, Option<&Json>)| {
            let properties = parameters.and_then(|p| p.get("properties")?.as_object());
            (name.to_owned(), properties.cloned().unwrap_or_default())
        };
        Parser {
            form: format.0,
            properties: functions(tools).map(of).collect(),
            reader: Reader::default(),
            place: Place::Text,
            listed: false,
            called: false,
        }
    }

    /// Takes the next piece of the answer. Returns what can be decided now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.reader.rest.push_str(text);
        self.read();
        std::mem::take(&mut self.reader.out)
    }

    /// Ends the answer, and returns what was held back. The parser can then read another answer.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.read();
        if !matches!(self.place, Place::Text | Place::Tail | Place::Between) {
            // The call is incomplete: all of it is text.
            self.reader.take(self.reader.rest.len());
        }
        self.reader.abandon();
        let (n, space) = (self.reader.rest.len(), self.reader.rest.trim().is_empty());
        match space && self.called {
            true => self.reader.drop(n),
            false => self.reader.text(n),
        }
        (self.place, self.listed, self.called) = (Place::Text, false, false);
        self.reader.forget();
        std::mem::take(&mut self.reader.out)
    }

    fn read(&mut self) {
        loop {
            match self.step() {
                Ok(()) => {}
                Err(Halt::More) => return,
                Err(Halt::Bad) => {
                    self.reader.abandon();
                    (self.place, self.called) = (Place::Text, false);
                }
            }
        }
    }

    fn step(&mut self) -> Flow {
        match &mut self.place {
            Place::Text => self.text(),
            Place::Begin => self.begin(),
            Place::Between => self.between(),
            Place::Tail => self.tail(),
            Place::Call(call) => {
                let (r, properties) = (&mut self.reader, &self.properties);
                match call {
                    Call::Object(call) => call.read(r)?,
                    Call::Named(call) => call.read(r)?,
                    Call::Values(call) => call.read(r)?,
                    Call::Tags(call) => call.read(r, &|name, key| properties.get(name)?.get(key))?,
                }
                self.called = true;
                self.place = if self.listed { Place::Between } else { Place::Tail };
                Ok(())
            }
        }
    }

    /// Passes text on, up to a marker that may begin calls, and the white space before it.
    fn text(&mut self) -> Flow {
        let rest = &self.reader.rest;
        let found = self.markers().filter_map(|word| Some((rest.find(word)?, word))).min();
        let end = found.map_or_else(|| rest.len() - self.undecided(), |(at, _)| at);
        let shown = rest[..end].trim_end().len();
        if shown > 0 {
            // A section marker that is followed by text, not by a call, is text itself.
            self.reader.abandon();
            self.reader.text(shown);
            self.called = false;
        }
        let Some((_, marker)) = found else { return Err(Halt::More) };
        match self.called {
            true => self.reader.drop(end - shown),
            false => drop(self.reader.take(end - shown)),
        }
        self.reader.take(marker.len());
        // A section marker does not begin a call.
        if Some(marker) == self.form.before() {
            return Ok(());
        }
        (self.place, self.listed) = (Place::Begin, false);
        Ok(())
    }

    /// Markers that may begin calls.
    fn markers(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.form.open().iter().copied().chain(self.form.before())
    }

    /// Bytes at the end of the text that may be the beginning of a marker.
    fn undecided(&self) -> usize {
        let rest = &self.reader.rest;
        let begins = |tail: &str| self.markers().any(|m| m.starts_with(tail));
        let longest = self.markers().map(str::len).max().unwrap_or(0);
        let from = rest.len().saturating_sub(longest);
        let starts = rest.char_indices().rev().take_while(|(i, _)| *i >= from).map(|(i, _)| i);
        starts.filter(|&i| begins(&rest[i..])).last().map_or(0, |i| rest.len() - i)
    }

    fn begin(&mut self) -> Flow {
        if self.form.is_list() {
            self.reader.space()?;
            self.listed = self.reader.word("[")?;
        }
        self.place = Place::Call(match self.form {
            Form::Hermes | Form::Mistral | Form::Granite => Call::Object(Object::new()),
            Form::QwenCoder | Form::Glm => Call::Tags(Tags::new(self.form)),
            Form::Gemma | Form::FunctionGemma | Form::Lfm2 => Call::Values(Values::new(self.form)),
            Form::Harmony | Form::DeepSeek | Form::DeepSeekFenced | Form::MistralNamed => {
                Call::Named(Named::new(self.form))
            }
        });
        Ok(())
    }

    fn between(&mut self) -> Flow {
        self.reader.space()?;
        if self.reader.word("]")? {
            self.reader.forget();
            self.place = Place::Tail;
            return Ok(());
        }
        self.reader.expect(",")?;
        self.begin_next();
        Ok(())
    }

    fn begin_next(&mut self) {
        self.place = Place::Call(match self.form {
            Form::Lfm2 => Call::Values(Values::new(self.form)),
            _ => Call::Object(Object::new()),
        });
    }

    /// Skips markers that may end calls.
    fn tail(&mut self) -> Flow {
        let rest = self.reader.rest.trim_start();
        let space = self.reader.rest.len() - rest.len();
        let close = self.form.close();
        if let Some(word) = close.iter().find(|word| rest.starts_with(**word)) {
            self.reader.drop(space + word.len());
            return Ok(());
        }
        if close.iter().any(|word| word.starts_with(rest)) {
            return Err(Halt::More);
        }
        self.place = Place::Text;
        Ok(())
    }
}
