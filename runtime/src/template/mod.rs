//! Chat templates: Jinja as transformers sets it up, rendered by minijinja.
//!
//! A template renders to the same bytes as in Python (`benches/records/templates.md`). For this, `source.rs`
//! rewrites it for minijinja, and values print, compare and have methods as in Python. Templates come with
//! models and are untrusted: they run with a limit on steps and on output, and see no files, no clock and no
//! environment.

mod arguments;
mod date;
mod depth;
mod expression;
mod filters;
mod json;
mod lexer;
mod numbers;
mod objects;
mod operators;
mod postfix;
mod python;
mod source;
mod text;
mod unicode;
mod value;

#[cfg(test)]
mod tests;

pub use date::DateTime;

use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, State};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Most instructions of one rendering. Real templates take a few hundred per message.
const MAX_STEPS: u64 = 5_000_000;

/// Longest template and longest rendering.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;

/// Longest format of `strftime_now`. It is short because one field may be a thousand characters wide.
const MAX_DATE_FORMAT_BYTES: usize = 1000;

const NAME: &str = "chat template";

/// Keys of a message that may hold the reasoning of an assistant. transformers fills the first two from any
/// of them.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// Creates a message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// The variables of a template besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderContext {
    /// Text of the beginning-of-text token.
    pub bos_token: String,
    /// Text of the end-of-text token.
    pub eos_token: String,
    /// Whether the rendering ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as JSON.
    pub tools: Option<Json>,
    /// Documents to answer from: objects with a title and a text.
    pub documents: Option<Json>,
    /// Other variables, such as `enable_thinking`. They override those above.
    pub variables: serde_json::Map<String, Json>,
    /// The local date and time, for templates that print it. The library reads no clock.
    pub now: Option<DateTime>,
}

/// A parsed template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// `Template`, with the line, if the text does not parse.
    pub fn parse(source: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::Template(format!(
                "the template has {} bytes; at most {MAX_TEMPLATE_BYTES} are allowed",
                source.len()
            )));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the delimiters are Jinja's own"));
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(200);
        environment.set_unknown_method_callback(python::call_method);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(print);
        filters::add_to(&mut environment);
        operators::add_to(&mut environment);
        python::add_to(&mut environment);
        environment.add_template_owned(NAME, source::prepare(source)?).map_err(describe)?;
        Ok(ChatTemplate { environment, source: source.to_owned() })
    }

    /// The text that was parsed.
    #[doc(hidden)]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation as the model was trained to read it.
    ///
    /// # Errors
    /// `Template` if the template refuses the messages, fails, or exceeds its limits.
    pub fn render(&self, messages: &[Message], with: &RenderContext) -> Result<String> {
        let messages = serde_json::to_value(messages).map_err(|e| Error::Template(e.to_string()))?;
        self.render_json(&messages, with)
    }

    /// Like [`ChatTemplate::render`], for messages with anything that templates read: tool calls and their
    /// results, reasoning, content that is null or a list of parts. `messages` is a list of objects, whose
    /// keys keep their order.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    #[doc(hidden)]
    pub fn render_json(&self, messages: &Json, with: &RenderContext) -> Result<String> {
        let list = messages.as_array().ok_or_else(|| Error::Template("messages must be a list".into()))?;
        let messages = list.iter().map(reasoned).collect::<Result<Vec<Json>>>()?;
        let template = self.environment.get_template(NAME).map_err(describe)?;
        let mut values: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(messages))),
            ("bos_token", Value::from(&with.bos_token)),
            ("eos_token", Value::from(&with.eos_token)),
            ("add_generation_prompt", Value::from(with.add_generation_prompt)),
            ("tools", Value::from(Serde(&with.tools))),
            ("documents", Value::from(Serde(&with.documents))),
        ];
        // Without a time the function is undefined, which templates check.
        if let Some(now) = with.now {
            values.push(("strftime_now", strftime_now(now)));
        }
        values.extend(with.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        let mut out = Limited(Vec::new());
        template.render_captured_to(Value::from_pairs(values), &mut out).map_err(describe)?;
        String::from_utf8(out.0).map_err(|_| Error::Template("the rendering is not UTF-8".into()))
    }
}

/// The message with its reasoning under the names that templates read.
fn reasoned(message: &Json) -> Result<Json> {
    let Json::Object(fields) = message else {
        return Err(Error::Template("a message must be an object".into()));
    };
    let Some(reasoning) = REASONING.iter().find_map(|key| fields.get(*key).filter(|v| !v.is_null())) else {
        return Ok(message.clone());
    };
    let mut out = serde_json::Map::new();
    out.insert("thinking".to_owned(), reasoning.clone());
    out.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone())));
    out.insert("reasoning_content".to_owned(), reasoning.clone());
    Ok(Json::Object(out))
}

fn strftime_now(now: DateTime) -> Value {
    Value::from_object(objects::Callable {
        name: "function strftime_now".into(),
        call: Box::new(move |_, args| {
            let [format] = arguments::bind(args, ["*format"])?;
            match format.as_ref().and_then(Value::as_str) {
                Some(format) if format.len() <= MAX_DATE_FORMAT_BYTES => Ok(Value::from(now.format(format))),
                _ => value::refuse("strftime_now takes a short format text"),
            }
        }),
    })
}

/// Writes the value of `{{ value }}`.
fn print(out: &mut minijinja::Output, state: &mut State, value: &Value) -> value::Result<()> {
    let written = if *state.auto_escape() != AutoEscape::None && !value.is_safe() {
        let escaped = state.apply_filter("e", std::slice::from_ref(value))?;
        out.write_str(escaped.as_str().unwrap_or_default())
    } else if let Some(text) = value.as_str() {
        out.write_str(text)
    } else {
        out.write_str(&value::text(state, value)?)
    };
    written.map_err(minijinja::Error::from)
}

/// Output with a size limit.
struct Limited(Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other("the rendering is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn describe(e: minijinja::Error) -> Error {
    let line = e.line().map_or_else(String::new, |n| format!("line {n}: "));
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    Error::Template(format!("{line}{what}"))
}
