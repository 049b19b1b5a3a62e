//! Constrains answers to a JSON Schema, a regular expression or a grammar.
//!
//! A [`Constraint`] describes the answer. A [`Guide`] follows one answer: it tells which tokens may come
//! next, and which are forced. The crate `llguidance` does the work; without the feature `grammar`, every
//! constraint is an error. This module knows tokens and no models.

#[cfg(not(feature = "grammar"))]
#[path = "absent.rs"]
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
use std::fmt;
use std::sync::{Arc, Mutex};

/// The most bytes of a constraint's text.
const MAX_BYTES: usize = 256 << 10;

/// What an answer must look like. Reasoning before the answer is not constrained, if the model or its
/// template marks it.
///
/// The text is compiled when a generation begins, unless it was compiled before. If that fails, the error is
/// `Error::Invalid` and names the place.
#[derive(Clone, Debug)]
pub struct Constraint {
    kind: Kind,
    text: Arc<str>,
    whole: bool,
    hurried: bool,
    /// Markers in the text, written as `{{marker}}`. Each becomes a special token if the vocabulary has it,
    /// otherwise text.
    markers: &'static [&'static str],
    compiled: Option<Compiled>,
}

/// A guide at the beginning of an answer, and the vocabulary that it was compiled for.
#[derive(Clone)]
struct Compiled {
    #[cfg_attr(not(feature = "grammar"), allow(dead_code))]
    words: Arc<Words>,
    #[cfg_attr(not(feature = "grammar"), allow(dead_code))]
    guide: Arc<Mutex<Guide>>,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Schema,
    Regex,
    Lark,
}

impl Kind {
    /// The kind's name in error texts.
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
        let text = text.into().into();
        Constraint { kind, text, whole: false, hurried: true, markers: &[], compiled: None }
    }

    /// An answer that is JSON of this schema (JSON text). The supported keywords are those of
    /// [llguidance](https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md); any other is an
    /// error. The answer is written on one line, with a space after commas and colons, unless the schema's
    /// `x-guidance` says otherwise.
    pub fn json_schema(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Schema, text)
    }

    /// An answer that is any JSON object.
    pub fn json() -> Constraint {
        Constraint::json_schema(r#"{"type": "object"}"#)
    }

    /// An answer that the regular expression matches as a whole. The syntax is that of the crate `regex`: no
    /// look-around, no back-references.
    pub fn regex(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Regex, text)
    }

    /// An answer that a context-free grammar derives from `start`, in [llguidance's form of
    /// Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    pub fn lark(text: impl Into<String>) -> Constraint {
        Constraint::new(Kind::Lark, text)
    }

    /// Applies the constraint from the first token, including reasoning and message headers.
    pub(crate) fn whole(mut self) -> Constraint {
        self.whole = true;
        self
    }

    /// Sets the markers that the text uses.
    pub(crate) fn with_markers(mut self, markers: &'static [&'static str]) -> Constraint {
        self.markers = markers;
        self
    }

    /// Whether the constraint applies from the first token.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Computes forced tokens one by one. Tests compare the usual joint computation with this.
    #[doc(hidden)]
    #[must_use]
    pub fn one_by_one(mut self) -> Constraint {
        self.hurried = false;
        self
    }

    /// This constraint, compiled for a vocabulary. Generations then begin with a copy of the compiled form.
    ///
    /// # Errors
    /// As [`Words::guide`].
    pub(crate) fn compiled(mut self, words: &Arc<Words>) -> Result<Constraint> {
        let guide = Arc::new(Mutex::new(words.guide(&self)?));
        self.compiled = Some(Compiled { words: words.clone(), guide });
        Ok(self)
    }

    /// # Errors
    /// `Invalid` if the text is too long.
    #[cfg_attr(not(feature = "grammar"), allow(dead_code))]
    fn check(&self) -> Result<()> {
        let (name, len) = (self.kind.name(), self.text.len());
        if len > MAX_BYTES {
            return Err(Error::Invalid(format!("the {name} has {len} bytes: {MAX_BYTES} at most")));
        }
        Ok(())
    }
}

/// Makes a schema's JSON compact, on one line. With free white space a model could write spaces forever, and
/// fewer tokens would be forced.
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
