//! Tool calls: reads them from a model's answer, and forces an answer to be one.
//!
//! The chat template tells the model which tools exist
//! ([`RenderContext::tools`](crate::template::RenderContext::tools)). The model writes calls in the form that
//! it was trained on. [`Format`] is that form, recognized by the template's text. [`Parser`] reads calls from
//! an answer that arrives in pieces. [`Format::require`] makes a [`Constraint`] under which the answer is one
//! valid call.
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

/// The form in which a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format(Form);

impl Format {
    /// Recognizes the form by the text of a chat template; `None` if the template has no calls or an unknown
    /// form. Known are the forms of Qwen and Hermes (JSON), Qwen3-Coder and GLM (tags), gpt-oss, Gemma, LFM2,
    /// DeepSeek, Mistral and Granite.
    pub fn of(template: &str) -> Option<Format> {
        Form::of(template).map(Format)
    }

    /// The markers around calls. Some vocabularies have them as special tokens, which show no text.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        self.0.markers()
    }

    /// A constraint under which an answer is one call of a tool in `tools`, or of the tool `name`. Its
    /// arguments obey the tool's `parameters`. Reasoning before the call is not constrained.
    ///
    /// # Errors
    /// `Invalid` if `tools` is empty or has no such tool. `Unsupported` if this form cannot be constrained.
    pub fn require(self, tools: &Json, name: Option<&str>) -> Result<Constraint> {
        require::require(self.0, tools, name)
    }
}

/// Names and parameters of a list of tools, with or without the `function` object of OpenAI's API.
fn functions(tools: &Json) -> impl Iterator<Item = (&str, Option<&Json>)> {
    let list = tools.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(|tool| {
        let tool = tool.get("function").filter(|f| f.is_object()).unwrap_or(tool);
        let parameters = tool.get("parameters").or_else(|| tool.get("input_schema"));
        Some((tool.get("name")?.as_str()?, parameters.filter(|p| p.is_object())))
    })
}
