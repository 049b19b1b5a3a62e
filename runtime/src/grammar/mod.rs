//! Answers that obey a JSON Schema, a regular expression or a grammar.
//!
//! [`Constraint`] says what an answer has to be. A [`Guide`] follows one answer: it says which tokens may come next, and which must. The
//! work is done by `llguidance`; without the feature `grammar` there is the same with an error in its place. Knows tokens, and nothing of
//! models.

#[cfg(not(feature = "grammar"))]
#[path = "absent.rs"]
#[allow(missing_docs)]
mod guide;
#[cfg(feature = "grammar")]
mod guide;
#[cfg(feature = "grammar")]
mod schema;
#[cfg(feature = "grammar")]
mod words;

pub use guide::{Guide, Mask, Words};

use crate::error::{Error, Result};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// Longest text of a constraint.
const MAX_BYTES: usize = 256 << 10;

/// What an answer has to be. Reasoning before it is free, where the model or its template marks it.
///
/// Checked where a generation begins: a text that does not compile is `Error::Invalid`, which names the place.
#[derive(Clone, Debug)]
pub struct Constraint {
    kind: Kind,
    text: Arc<str>,
    whole: bool,
    hurried: bool,
    /// Markers in the text, between double braces: tokens where the vocabulary has them, else texts.
    markers: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Schema,
    Regex,
    Lark,
}

impl Kind {
    /// What its text is called.
    fn name(self) -> &'static str {
        match self {
            Kind::Schema => "JSON Schema",
            Kind::Regex => "regular expression",
            Kind::Lark => "grammar",
        }
    }
}

impl Constraint {
    fn new(kind: Kind, text: impl Into<String>) -> Constraint {
        Constraint { kind, text: text.into().into(), whole: false, hurried: true, markers: &[] }
    }

    /// JSON of a schema, given as its text, with the keywords of
    /// [llguidance](https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md). Another keyword is an error. It is written
    /// on one line, with a space behind commas and colons, unless the schema's `x-guidance` says otherwise.
    pub fn json_schema(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Schema, text)
    }

    /// Any JSON object.
    pub fn json() -> Constraint {
        Constraint::json_schema(r#"{"type": "object"}"#)
    }

    /// What a regular expression matches as a whole, in the syntax of the crate `regex`: no look-around, no back-references.
    pub fn regex(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Regex, text)
    }

    /// What a context-free grammar derives from `start`, in
    /// [llguidance's form of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    pub fn lark(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Lark, text)
    }

    /// The same from the first token on, reasoning and headers of messages included.
    pub(crate) fn whole(mut self) -> Constraint {
        self.whole = true;
        self
    }

    /// The same, with these between double braces in its text.
    pub(crate) fn with_markers(mut self, markers: &'static [&'static str]) -> Constraint {
        self.markers = markers;
        self
    }

    /// Whether it begins with the first token.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The same, with forced tokens computed one by one: what taking them together has to equal.
    #[doc(hidden)]
    #[must_use]
    pub fn one_by_one(mut self) -> Constraint {
        self.hurried = false;
        self
    }

    /// # Errors
    /// `Invalid` for a text that is too long.
    #[cfg_attr(not(feature = "grammar"), allow(dead_code))]
    fn check(&self) -> Result<()> {
        let (name, len) = (self.kind.name(), self.text.len());
        if len > MAX_BYTES {
            return Err(Error::Invalid(format!("the {name} has {len} bytes: {MAX_BYTES} at most")));
        }
        Ok(())
    }
}

/// A schema whose JSON is written on one line: with free white space a model may go on with that for ever, and less is forced.
pub(crate) fn on_one_line(mut schema: Json) -> Json {
    if schema == true {
        schema = json!({});
    }
    if let Json::Object(map) = &mut schema {
        let form = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
        map.entry("x-guidance").or_insert(form);
    }
    schema
}
