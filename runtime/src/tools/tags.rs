//! Reads calls written as tags: `<function=f><parameter=a>…</parameter></function>`. Arguments are plain
//! text; only the tool's parameter schemas tell numbers from strings.

use super::form::Form;
use super::literal;
use super::reader::{Flow, Halt, MAX_HEAD, Reader};
use serde_json::Value as Json;

enum At {
    Head,
    Next,
    Key,
    /// After the key.
    Gap,
    Value,
}

pub struct Tags {
    at: At,
    name: String,
    key: String,
    is: Form,
}

/// The tags of a form.
struct Spelled {
    key: (&'static str, &'static str),
    value: (&'static str, &'static str),
    end: &'static str,
}

const QWEN: Spelled = Spelled { key: ("<parameter=", ">"), value: ("", "</parameter>"), end: "</function>" };
const GLM: Spelled =
    Spelled { key: ("<arg_key>", "</arg_key>"), value: ("<arg_value>", "</arg_value>"), end: "</tool_call>" };

impl Tags {
    pub fn new(is: Form) -> Tags {
        Tags { at: At::Head, name: String::new(), key: String::new(), is }
    }

    /// `schema` returns the schema of a tool's parameter.
    pub fn read<'a>(&mut self, r: &mut Reader, schema: &dyn Fn(&str, &str) -> Option<&'a Json>) -> Flow {
        let spelled = if self.is == Form::Glm { GLM } else { QWEN };
        loop {
            match self.at {
                At::Head => {
                    r.space()?;
                    let (name, _) = match self.is {
                        Form::Glm => r.until(&["\n", "<arg_key>", "</tool_call>"], MAX_HEAD)?,
                        _ => {
                            if !r.rest.starts_with("<function=") {
                                return if "<function=".starts_with(&*r.rest) {
                                    Err(Halt::More)
                                } else {
                                    Err(Halt::Bad)
                                };
                            }
                            r.until(&[">"], MAX_HEAD)?
                        }
                    };
                    if self.is != Form::Glm {
                        r.expect(">")?;
                    }
                    self.name = name.trim().trim_start_matches("<function=").trim().to_owned();
                    r.call(&self.name)?;
                    self.at = At::Next;
                }
                At::Next => {
                    r.space()?;
                    if r.word(spelled.end)? {
                        r.close();
                        return r.end();
                    }
                    r.expect(spelled.key.0)?;
                    self.at = At::Key;
                }
                At::Key => {
                    let (key, _) = r.until(&[spelled.key.1], MAX_HEAD)?;
                    r.expect(spelled.key.1)?;
                    self.key = key.trim().to_owned();
                    self.at = At::Gap;
                }
                At::Gap => {
                    if !spelled.value.0.is_empty() {
                        r.space()?;
                        r.expect(spelled.value.0)?;
                    }
                    self.at = At::Value;
                }
                At::Value => {
                    let (text, _) = r.until(&[spelled.value.1], usize::MAX)?;
                    r.expect(spelled.value.1)?;
                    // In Qwen's form, a value is on lines of its own.
                    let text = match self.is {
                        Form::Glm => &*text,
                        _ => text.strip_prefix('\n').unwrap_or(&text),
                    };
                    let text = match self.is {
                        Form::Glm => text,
                        _ => text.strip_suffix('\n').unwrap_or(text),
                    };
                    r.pair(&self.key, &typed(text, schema(&self.name, &self.key)));
                    self.at = At::Next;
                }
            }
        }
    }
}

/// The value that a text means under `schema`.
fn typed(text: &str, schema: Option<&Json>) -> Json {
    let kinds = schema.map(kinds).unwrap_or_default();
    let value = || literal::parse(text.trim(), None);
    if kinds.contains(&"string") {
        // If a string is allowed, the text is a string, except `null` if null is allowed, too.
        let null = kinds.contains(&"null") && matches!(text.trim(), "null" | "None");
        return if null { Json::Null } else { text.into() };
    }
    value().unwrap_or_else(|| text.into())
}

/// Which of `string` and `null` the schema allows at its top level.
fn kinds(schema: &Json) -> Vec<&str> {
    let of = |schema: &'_ Json| -> Vec<String> {
        match &schema["type"] {
            Json::String(kind) => vec![kind.clone()],
            Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    };
    let any = ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(*key)?.as_array()).flatten();
    let texts =
        schema.get("enum").and_then(Json::as_array).is_some_and(|all| all.iter().all(Json::is_string));
    let mut all: Vec<String> = of(schema).into_iter().chain(any.flat_map(of)).collect();
    if texts || schema.get("const").is_some_and(Json::is_string) {
        all.push("string".into());
    }
    ["string", "null"].into_iter().filter(|kind| all.iter().any(|k| k == kind)).collect()
}
