//! Reads the tools and answer formats of a request into the form that templates and the runtime take.

use crate::fields::Fields;
use crate::refusal::Refusal;
use dollop::Constraint;
use serde_json::{Map, Value as Json, json};

const MAX_TOOLS: usize = 128;

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    /// The tools as a list in OpenAI's form. `None` if the model may call no tool.
    pub list: Option<Json>,
    /// `Some` if a tool must be called. The inner value names a specific tool.
    pub require: Option<Option<String>>,
}

/// Reads a tool into the form that templates take. `parameters` names the field with its JSON Schema.
fn tool(f: &Fields, parameters: &str) -> Result<Json, Refusal> {
    let mut function = Map::new();
    function.insert("name".into(), f.need_text("name")?.into());
    if let Some(text) = f.text("description")? {
        function.insert("description".into(), text.into());
    }
    let none = || json!({"type": "object", "properties": {}});
    let parameters = f.get(parameters).cloned().unwrap_or_else(none);
    if !parameters.is_object() {
        return Err(f.wrong("parameters", "must be a JSON Schema"));
    }
    function.insert("parameters".into(), parameters);
    Ok(json!({"type": "function", "function": function}))
}

fn list(f: &Fields, one: impl Fn(&Fields) -> Result<Json, Refusal>) -> Result<Option<Json>, Refusal> {
    let tools = f.list("tools")?.unwrap_or_default();
    if tools.len() > MAX_TOOLS {
        return Err(f.wrong("tools", format!("must have at most {MAX_TOOLS} tools")));
    }
    let read = |(i, json): (usize, &Json)| one(&Fields::of(json, &format!("tools[{i}]."))?);
    let all = tools.iter().enumerate().map(read).collect::<Result<Vec<Json>, Refusal>>()?;
    Ok((!all.is_empty()).then_some(Json::Array(all)))
}

fn only_functions(f: &Fields) -> Result<(), Refusal> {
    match f.text("type")?.unwrap_or("function") {
        "function" => Ok(()),
        _ => Err(f.wrong("type", "must be function")),
    }
}

/// Reads `tools` and `tool_choice` of OpenAI's and Ollama's APIs. The chat APIs wrap each tool in `function`
/// (`framed`); `/v1/responses` does not.
///
/// # Errors
/// 400, naming the field.
pub fn openai(f: &Fields, framed: bool) -> Result<Tools, Refusal> {
    let list = list(f, |f| {
        only_functions(f)?;
        match f.get("function") {
            Some(function) if framed => tool(&Fields::of(function, &f.name("function."))?, "parameters"),
            _ => tool(f, "parameters"),
        }
    })?;
    let require = match f.get("tool_choice") {
        None => None,
        Some(Json::String(choice)) => match choice.as_str() {
            "auto" => None,
            "none" => return Ok(Tools::default()),
            "required" => Some(None),
            _ => return Err(f.wrong("tool_choice", "must be auto, none, required or a function")),
        },
        Some(choice) => {
            let choice = Fields::of(choice, "tool_choice.")?;
            only_functions(&choice)?;
            let named = match choice.get("function") {
                Some(function) => Fields::of(function, "tool_choice.function.")?.need_text("name")?,
                None => choice.need_text("name")?,
            };
            Some(Some(named.to_owned()))
        }
    };
    Tools { list, require }.checked(f)
}

/// Reads `tools` and `tool_choice` of Anthropic's API.
///
/// # Errors
/// 400, naming the field.
pub fn anthropic(f: &Fields) -> Result<Tools, Refusal> {
    let list = list(f, |f| match f.text("type")?.unwrap_or("custom") {
        "custom" => tool(f, "input_schema"),
        _ => Err(f.wrong("type", "must be custom")),
    })?;
    let require = match f.get("tool_choice").map(|c| Fields::of(c, "tool_choice.")).transpose()? {
        None => None,
        Some(choice) => match choice.need_text("type")? {
            "auto" => None,
            "none" => return Ok(Tools::default()),
            "any" => Some(None),
            "tool" => Some(Some(choice.need_text("name")?.to_owned())),
            _ => return Err(choice.wrong("type", "must be auto, any, tool or none")),
        },
    };
    Tools { list, require }.checked(f)
}

impl Tools {
    fn checked(self, f: &Fields) -> Result<Tools, Refusal> {
        match self.require.is_some() && self.list.is_none() {
            true => Err(f.wrong("tool_choice", "requires a tool, but the request has no tools")),
            false => Ok(self),
        }
    }
}

/// An earlier tool call of the assistant, in the form that templates take: `arguments` is an object.
pub fn call(id: Option<&str>, name: &str, arguments: Json) -> Json {
    json!({"type": "function", "id": id, "function": {"name": name, "arguments": arguments}})
}

/// Reads the arguments of a call, which are an object or its JSON text.
///
/// # Errors
/// 400 for anything else.
pub fn arguments(f: &Fields, name: &str) -> Result<Json, Refusal> {
    let read = match f.get(name) {
        None => json!({}),
        Some(Json::String(text)) if text.trim().is_empty() => json!({}),
        Some(Json::String(text)) => serde_json::from_str(text).unwrap_or(Json::Null),
        Some(other) => other.clone(),
    };
    if read.is_object() { Ok(read) } else { Err(f.wrong(name, "must be a JSON object")) }
}

/// Reads the tool calls of an assistant's message in OpenAI's form.
///
/// # Errors
/// 400, naming the field.
pub fn calls(f: &Fields) -> Result<Vec<Json>, Refusal> {
    let read = |(i, json): (usize, &Json)| {
        let prefix = format!("{}[{i}].", f.name("tool_calls"));
        let c = Fields::of(json, &prefix)?;
        let function = c.get("function").ok_or_else(|| c.wrong("function", "is missing"))?;
        let prefix = c.name("function.");
        let function = Fields::of(function, &prefix)?;
        Ok(call(c.text("id")?, function.need_text("name")?, arguments(&function, "arguments")?))
    };
    f.list("tool_calls")?.unwrap_or_default().iter().enumerate().map(read).collect()
}

/// Adds the tool's name to each tool result. Some templates render it.
pub fn name_results(messages: &mut [Json]) {
    let mut names = Map::new();
    for message in messages {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if let Some(id) = call["id"].as_str() {
                names.insert(id.to_owned(), call["function"]["name"].clone());
            }
        }
        if message["role"] == "tool"
            && message.get("name").is_none()
            && let Some(name) = message["tool_call_id"].as_str().and_then(|id| names.get(id))
        {
            message["name"] = name.clone();
        }
    }
}

/// Reads the required format of an answer from `response_format`, `text.format` or `format`. A JSON Schema is
/// in the field `schema`, or is the value itself (Ollama).
///
/// # Errors
/// 400, naming the field.
pub fn format(value: Option<&Json>, name: &str) -> Result<Option<Constraint>, Refusal> {
    let schema = |schema: &Json| Some(Constraint::json_schema(schema.to_string()));
    match value {
        None => Ok(None),
        Some(Json::String(text)) if text.is_empty() => Ok(None),
        Some(Json::String(text)) if text == "json" => Ok(Some(Constraint::json())),
        Some(json) => {
            let prefix = format!("{name}.");
            let f = Fields::of(json, &prefix)?;
            match f.get("type").and_then(Json::as_str) {
                Some("text") => Ok(None),
                Some("json_object") => Ok(Some(Constraint::json())),
                Some("json_schema") => {
                    let of = f.get("json_schema").unwrap_or(json);
                    let of = of.get("schema").filter(|s| s.is_object());
                    Ok(schema(of.ok_or_else(|| f.wrong("schema", "is missing"))?))
                }
                // Ollama's `format` is the schema itself.
                _ if name == "format" => Ok(schema(json)),
                _ => Err(f.wrong("type", "must be text, json_object or json_schema")),
            }
        }
    }
}
