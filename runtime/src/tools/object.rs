//! Reads calls of the form `{"name": "f", "arguments": {…}}`, with keys in any order, and other keys ignored.

use super::reader::{Flow, Halt, Reader};
use serde_json::Value as Json;

#[derive(Clone, Copy)]
enum At {
    Open,
    Key,
    Colon,
    Value,
    Arguments,
    Next,
}

pub struct Object {
    at: At,
    key: String,
    name: bool,
    /// Arguments that came before the name.
    early: Option<String>,
    done: bool,
}

impl Object {
    pub fn new() -> Object {
        Object { at: At::Open, key: String::new(), name: false, early: None, done: false }
    }

    pub fn read(&mut self, r: &mut Reader) -> Flow {
        loop {
            // Skip white space, except in arguments, where it may be inside a string.
            if !matches!(self.at, At::Arguments) {
                r.space()?;
            }
            match self.at {
                At::Open => {
                    r.expect("{")?;
                    self.at = At::Key;
                }
                At::Key => {
                    let key = r.value()?;
                    self.key = serde_json::from_str(&key).map_err(|_| Halt::Bad)?;
                    self.at = At::Colon;
                }
                At::Colon => {
                    r.expect(":")?;
                    self.at = At::Value;
                }
                At::Value if self.is_arguments() && self.name && r.rest.starts_with('{') => {
                    self.at = At::Arguments;
                }
                At::Value => {
                    let value = r.value()?;
                    self.hear(&value, r)?;
                    self.at = At::Next;
                }
                At::Arguments => {
                    r.stream()?;
                    (self.done, self.at) = (true, At::Next);
                }
                At::Next => {
                    if r.word("}")? {
                        return self.close(r);
                    }
                    r.expect(",")?;
                    self.at = At::Key;
                }
            }
        }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters") && !self.done
    }

    fn hear(&mut self, value: &str, r: &mut Reader) -> Flow {
        let value: Json = serde_json::from_str(value).map_err(|_| Halt::Bad)?;
        match (&*self.key, value) {
            ("name", Json::String(name)) if !self.name => {
                r.call(&name)?;
                self.name = true;
            }
            // Some models write the arguments object as a JSON string.
            (_, Json::String(text)) if self.is_arguments() => self.early = Some(text),
            (_, object @ Json::Object(_)) if self.is_arguments() => self.early = Some(object.to_string()),
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, r: &mut Reader) -> Flow {
        if !self.done {
            r.argument(self.early.as_deref().unwrap_or("{}"));
        }
        r.end()
    }
}
