//! Calls of tools: in which form a model writes them, how they are read from its answer, and what makes it write one.
//!
//! A template tells the model which tools there are ([`RenderContext::tools`](crate::template::RenderContext::tools)), and the model answers
//! with calls in the form that it was trained on. [`Format`] is that form, known by the template's text; [`Parser`] reads an answer that
//! comes in pieces; [`Format::require`] is a [`Constraint`] under which the answer is a valid call.
//!
//! ```no_run
//! # fn main() -> dollop::Result<()> {
//! # let engine = dollop::Engine::open("model.gguf", &dollop::EngineOptions::default())?;
//! # let (mut session, prompt) = (engine.session(Default::default())?, [1]);
//! use dollop::tools::{Parser, Piece};
//! use dollop::{Event, GenerateOptions};
//!
//! let tools = serde_json::json!([{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]);
//! let format = engine.tool_format().expect("the template has tools");
//! let mut parser = Parser::new(format, &tools);
//! for event in session.stream(&prompt, &GenerateOptions::default().with_tools(format))? {
//!     let pieces = match event? {
//!         Event::Token { text, .. } | Event::Rest { text } => parser.push(&text),
//!         _ => continue,
//!     };
//!     for piece in pieces {
//!         match piece {
//!             Piece::Text(text) => { /* show it */ }
//!             Piece::Call { name } => { /* the arguments follow, piece by piece */ }
//!             _ => {}
//!         }
//!     }
//! }
//! let rest = parser.finish();
//! # Ok(())
//! # }
//! ```

mod form;
mod literal;
mod named;
mod object;
mod parser;
mod reader;
mod require;
mod tags;
mod values;

pub use parser::Parser;
pub use reader::Piece;

use crate::error::Result;
use crate::grammar::Constraint;
use form::Form;
use serde_json::Value as Json;

/// The form in which a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format(Form);

impl Format {
    /// By the text of a chat template: `None` where it has no calls, or in a form that is not known. Known are those of Qwen and Hermes
    /// (JSON), Qwen3-Coder and GLM (tags), gpt-oss, Gemma, LFM2, DeepSeek, Mistral and Granite.
    pub fn of(template: &str) -> Option<Format> {
        Form::of(template).map(Format)
    }

    /// Tokens around calls, of which some vocabularies show nothing in a text.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        self.0.markers()
    }

    /// What makes an answer one call of one of `tools`, or of the one that is `name`, with arguments that obey its `parameters`.
    /// Reasoning before it is free.
    ///
    /// # Errors
    /// `Invalid` where there is no such tool, or none at all; `Unsupported` where the form has no such constraint.
    pub fn require(self, tools: &Json, name: Option<&str>) -> Result<Constraint> {
        require::require(self.0, tools, name)
    }
}

/// The functions of a list of tools, as OpenAI's API writes them or without the frame: name and parameters.
fn functions(tools: &Json) -> impl Iterator<Item = (&str, Option<&Json>)> {
    let list = tools.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|tool| {
        let tool = tool.get("function").filter(|f| f.is_object()).unwrap_or(tool);
        let parameters = tool.get("parameters").or_else(|| tool.get("input_schema"));
        Some((tool.get("name")?.as_str()?, parameters.filter(|p| p.is_object())))
    })
}
