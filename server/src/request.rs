//! The common request type that all APIs translate to, and the parsing that they share.

use crate::fields::Fields;
use crate::refusal::Refusal;
use crate::tools::{self, Tools};
use dollop::Constraint;
use dollop::sampler::Sampling;
use serde_json::{Map, Value as Json, json};

/// Maximum number of answers of one request: prompts times answers per prompt.
pub const MAX_CHOICES: usize = 8;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
const MAX_MESSAGES: usize = 4096;

/// A request for one or more generations.
#[derive(Clone, Debug)]
pub struct Request {
    /// The input to continue.
    pub input: Input,
    /// Maximum number of tokens of an answer. The default is as many as fit the context.
    pub max_tokens: Option<usize>,
    /// Sampling parameters. Answer `i` uses the seed `seed + i`.
    pub sampling: Sampling,
    /// Stop strings, which end an answer.
    pub stop: Vec<String>,
    /// The constraint that the answer must satisfy.
    pub constraint: Option<Constraint>,
    /// Whether to report log probabilities, and of how many likeliest tokens.
    pub logprobs: Option<usize>,
    /// Whether to continue after an end-of-turn token.
    pub ignore_eos: bool,
    /// Number of answers per prompt.
    pub choices: usize,
    /// Whether the response is streamed.
    pub stream: bool,
}

/// The input of a request.
#[derive(Clone, Debug)]
pub enum Input {
    /// Messages, rendered with the model's chat template.
    Chat(Conversation),
    /// Texts that are used without a template.
    Texts(Vec<Text>),
}

/// A conversation in the form that chat templates take.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Objects with `role`, `content` and the other keys that templates use.
    pub messages: Vec<Json>,
    /// Tools that the model may call.
    pub tools: Tools,
    /// Additional variables for the template.
    pub variables: Map<String, Json>,
}

/// A prompt, as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// Text that is not tokenized yet.
    Plain(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl Request {
    /// A request with the fields that all APIs share: sampling, `stream` and `ignore_eos`.
    ///
    /// # Errors
    /// 400, naming the field.
    pub fn new(f: &Fields, input: Input, sampling: Sampling) -> Result<Request, Refusal> {
        Ok(Request {
            input,
            max_tokens: None,
            sampling,
            stop: Vec::new(),
            constraint: None,
            logprobs: None,
            ignore_eos: f.flag("ignore_eos")?.unwrap_or(false),
            choices: 1,
            stream: f.flag("stream")?.unwrap_or(false),
        })
    }

    /// Reads the answer's constraint from a format field.
    ///
    /// # Errors
    /// 400, naming the field. Also 400 if the request has tools.
    pub fn read_format(&mut self, value: Option<&Json>, name: &str) -> Result<(), Refusal> {
        self.constraint = tools::format(value, name)?;
        let has_tools = matches!(&self.input, Input::Chat(c) if c.tools.list.is_some());
        if self.constraint.is_some() && has_tools {
            return Err(Refusal::unsupported(name, "is not supported together with tools"));
        }
        Ok(())
    }

    /// Reads the stop strings from the field `name`.
    ///
    /// # Errors
    /// 400 for too many strings, or for a string that is empty or too long.
    pub fn read_stop(&mut self, f: &Fields, name: &str) -> Result<(), Refusal> {
        self.stop = f.texts(name)?;
        let bad = |s: &String| s.is_empty() || s.len() > MAX_STOP_BYTES;
        if self.stop.len() > MAX_STOPS || self.stop.iter().any(bad) {
            let must = format!("must be at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes");
            return Err(f.wrong(name, must));
        }
        Ok(())
    }
}

/// Refuses a model name other than the served one. A request without a name is accepted.
///
/// # Errors
/// 404 for another name.
pub fn check_model(f: &Fields, served: &str) -> Result<(), Refusal> {
    match f.text("model")? {
        // Ollama's clients append a version to the model's name.
        Some(asked) if asked.strip_suffix(":latest").unwrap_or(asked) != served => {
            Err(Refusal::unknown_model(asked, served))
        }
        _ => Ok(()),
    }
}

/// Reads the messages of OpenAI's and Ollama's chat APIs into the form that templates take.
///
/// # Errors
/// 400, naming the message.
pub fn messages(f: &Fields, name: &str) -> Result<Vec<Json>, Refusal> {
    let list = f.list(name)?.ok_or_else(|| f.wrong(name, "is missing"))?;
    if list.is_empty() || list.len() > MAX_MESSAGES {
        return Err(f.wrong(name, format!("must have 1 to {MAX_MESSAGES} messages")));
    }
    let one = |(i, json): (usize, &Json)| {
        let prefix = format!("{}[{i}].", f.name(name));
        message(&Fields::of(json, &prefix)?)
    };
    let mut all = list.iter().enumerate().map(one).collect::<Result<Vec<Json>, Refusal>>()?;
    tools::name_results(&mut all);
    Ok(all)
}

fn message(f: &Fields) -> Result<Json, Refusal> {
    let role = match f.need_text("role")? {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        _ => return Err(f.wrong("role", "must be system, developer, user, assistant or tool")),
    };
    f.refuse("images", "this model reads text only")?;
    f.refuse("audio", "this model reads text only")?;
    f.refuse("function_call", "is deprecated: use tool_calls")?;
    let (content, calls) = (content(f, "content")?, tools::calls(f)?);
    if content.is_none() && role != "assistant" {
        return Err(f.wrong("content", "is missing"));
    }
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.unwrap_or_default().into());
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    if let Some(name) = f.text("tool_name")? {
        message.insert("name".into(), name.into());
    }
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning", "thinking"] {
        if let Some(text) = f.text(name)? {
            message.insert(name.into(), text.into());
        }
    }
    Ok(Json::Object(message))
}

/// Reads a message's content: a string, or an array of text parts, which are joined.
///
/// # Errors
/// 400 for parts that are not text.
pub fn content(f: &Fields, name: &str) -> Result<Option<String>, Refusal> {
    let parts = match f.get(name) {
        None => return Ok(None),
        Some(Json::String(text)) => return Ok(Some(text.clone())),
        Some(Json::Array(parts)) => parts,
        Some(_) => return Err(f.wrong(name, "must be a string or an array of text parts")),
    };
    let mut whole = String::new();
    for (i, part) in parts.iter().enumerate() {
        let prefix = format!("{}[{i}].", f.name(name));
        let part = Fields::of(part, &prefix)?;
        match part.text("type")?.unwrap_or("text") {
            "text" | "input_text" | "output_text" => whole.push_str(part.need_text("text")?),
            "refusal" => whole.push_str(part.need_text("refusal")?),
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(part.wrong("type", format!("`{other}`: this model reads text only")));
            }
        }
    }
    Ok(Some(whole))
}

/// A message with only a role and a text.
pub fn plain(role: &str, text: impl Into<String>) -> Json {
    json!({"role": role, "content": text.into()})
}

/// Reads the template variables from `chat_template_kwargs` and `reasoning_effort`.
///
/// # Errors
/// 400, naming the field.
pub fn variables(f: &Fields) -> Result<Map<String, Json>, Refusal> {
    let mut all = match f.get("chat_template_kwargs") {
        None => Map::new(),
        Some(Json::Object(map)) => map.clone(),
        Some(_) => return Err(f.wrong("chat_template_kwargs", "must be an object")),
    };
    // The server sets these itself from the conversation.
    for name in ["messages", "add_generation_prompt", "bos_token", "eos_token"] {
        if all.contains_key(name) {
            return Err(f.wrong("chat_template_kwargs", format!("`{name}` cannot be set")));
        }
    }
    if let Some(effort) = f.text("reasoning_effort")? {
        thinking(&mut all, effort);
    }
    Ok(all)
}

/// Sets the reasoning effort under the variable names that templates use.
pub fn thinking(variables: &mut Map<String, Json>, effort: &str) {
    match effort {
        "none" => variables.insert("enable_thinking".into(), false.into()),
        effort => variables.insert("reasoning_effort".into(), effort.into()),
    };
}
