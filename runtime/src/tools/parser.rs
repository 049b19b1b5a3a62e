//! Calls in an answer that comes in pieces.

use super::form::Form;
use super::named::Named;
use super::object::Object;
use super::reader::{Flow, Halt, Piece, Reader};
use super::tags::Tags;
use super::values::Values;
use super::{Format, functions};
use serde_json::{Map, Value as Json};
use std::collections::HashMap;

/// Reads an answer that comes in pieces, and tells calls in it from text. What begins as a call and is none stays text.
pub struct Parser {
    form: Form,
    /// What the arguments of each tool have to be.
    properties: HashMap<String, Map<String, Json>>,
    reader: Reader,
    place: Place,
    /// Whether the calls stand in brackets.
    listed: bool,
    /// Whether a call was read, and no text since.
    called: bool,
}

enum Place {
    Text,
    /// Behind the marker that begins calls.
    Begin,
    Call(Call),
    /// Between calls in brackets.
    Between,
    /// Behind the last call.
    Tail,
}

enum Call {
    Object(Object),
    Named(Named),
    Tags(Tags),
    Values(Values),
}

impl Parser {
    /// `tools` is the list that the template was given: by it numbers are told from texts, where the form writes both alike.
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

    /// Takes the next piece of the answer; what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.reader.rest.push_str(text);
        self.read();
        std::mem::take(&mut self.reader.out)
    }

    /// The end of the answer: what was held back. The parser is then as new.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.read();
        if !matches!(self.place, Place::Text | Place::Tail | Place::Between) {
            // It breaks off: all of it is text.
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

    /// Passes text on, up to what may begin calls and the white space before it.
    fn text(&mut self) -> Flow {
        let rest = &self.reader.rest;
        let found = self.markers().filter_map(|word| Some((rest.find(word)?, word))).min();
        let end = found.map_or_else(|| rest.len() - self.undecided(), |(at, _)| at);
        let shown = rest[..end].trim_end().len();
        if shown > 0 {
            // The marker of a section without a call in it is text as well.
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
        // The marker of a section begins no call.
        if Some(marker) == self.form.before() {
            return Ok(());
        }
        (self.place, self.listed) = (Place::Begin, false);
        Ok(())
    }

    /// What may begin calls.
    fn markers(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.form.open().iter().copied().chain(self.form.before())
    }

    /// Bytes at the end of the text that may begin a marker.
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

    /// Leaves out what may end calls.
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
