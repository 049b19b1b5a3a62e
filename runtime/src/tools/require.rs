//! Builds a grammar under which an answer is one valid tool call.
//!
//! The grammar is in llguidance's Lark. Markers are written as `{{…}}`, because only the vocabulary knows
//! whether a marker is a special token or text.

use super::form::Form;
use super::functions;
use crate::error::{Error, Result};
use crate::grammar::{Constraint, on_one_line};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// The longest bounded string length. The grammar needs one state per character of the bound, so longer
/// bounds are ignored.
const MAX_LENGTH: u64 = 1000;

/// Deepest nesting of a schema in the forms that are not JSON.
const MAX_DEPTH: usize = 16;

pub fn require(form: Form, tools: &Json, name: Option<&str>) -> Result<Constraint> {
    let of = |(n, parameters): (&str, Option<&Json>)| {
        (n.to_owned(), parameters.cloned().unwrap_or_else(|| json!({"type": "object"})))
    };
    let all: Vec<(String, Json)> = functions(tools).map(of).collect();
    let chosen: Vec<_> = all.iter().filter(|(n, _)| name.is_none_or(|name| name == n)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
        return Err(Error::Invalid(match name {
            Some(name) => format!("there is no tool `{name}`; the tools are: {}", names.join(", ")),
            None => "a tool call is required, but no tools were given".into(),
        }));
    }
    let mut of = Grammar { form, rules: String::new() };
    let calls: Vec<String> = chosen.iter().map(|(name, schema)| of.call(name, schema)).collect();
    let text = format!("start: {}\ncall: {}\n{}", start(form), calls.join(" | "), of.rules);
    let constraint = Constraint::lark(text).with_markers(form.markers());
    // In this form, message headers are part of the call.
    Ok(if form == Form::Harmony { constraint.whole() } else { constraint })
}

/// The grammar of the text around a call.
fn start(form: Form) -> String {
    match form {
        Form::Hermes | Form::QwenCoder => r#"{{<tool_call>}} "\n" call "\n" {{</tool_call>}}"#.into(),
        Form::Glm => "{{<tool_call>}} call {{</tool_call>}}".into(),
        Form::Harmony => concat!(
            r#"analysis? {{<|channel|>}} "commentary to=functions." call"#,
            "\n",
            r#"analysis: {{<|channel|>}} "analysis" {{<|message|>}} /(?s:.*)/ {{<|end|>}} {{<|start|>}} "assistant""#
        )
        .into(),
        Form::Gemma => r#"{{<|tool_call>}} "call:" call {{<tool_call|>}}"#.into(),
        Form::FunctionGemma => {
            r#"{{<start_function_call>}} "call:" call {{<end_function_call>}}"#.into()
        }
        Form::Lfm2 => r#"{{<|tool_call_start|>}} "[" call "]" {{<|tool_call_end|>}}"#.into(),
        Form::DeepSeek | Form::DeepSeekFenced => {
            "{{<｜tool▁calls▁begin｜>}} {{<｜tool▁call▁begin｜>}} call {{<｜tool▁call▁end｜>}} {{<｜tool▁calls▁end｜>}}".into()
        }
        Form::Mistral => r#"{{[TOOL_CALLS]}} "[" call "]""#.into(),
        Form::MistralNamed => "{{[TOOL_CALLS]}} call".into(),
        Form::Granite => r#"{{<|tool_call|>}} "[" call "]""#.into(),
    }
}

struct Grammar {
    form: Form,
    rules: String,
}

/// A text as a string literal of the grammar.
fn literal(text: &str) -> String {
    // DEL is the one control character that JSON does not escape.
    Json::from(text).to_string().replace('\u{7f}', "\\u007f")
}

impl Grammar {
    /// Adds a rule and returns its name.
    fn rule(&mut self, body: &str) -> String {
        let name = format!("r{}", self.rules.lines().count());
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// Adds the rule for a call of one tool, and returns its name.
    fn call(&mut self, name: &str, schema: &Json) -> String {
        let object = json!({
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": schema},
            "required": ["name", "arguments"],
            "additionalProperties": false
        });
        let body = match self.form {
            Form::Hermes | Form::Mistral | Form::Granite => json_of(&object),
            Form::DeepSeek => format!("{} {{{{<｜tool▁sep｜>}}}} {}", literal(name), json_of(schema)),
            Form::DeepSeekFenced => format!(
                r#""function" {{{{<｜tool▁sep｜>}}}} {} {} "\n```""#,
                literal(&format!("{name}\n```json\n")),
                json_of(schema)
            ),
            Form::MistralNamed => format!("{} {{{{[ARGS]}}}} {}", literal(name), json_of(schema)),
            Form::Harmony => format!(
                "{} {{{{<|constrain|>}}}} \"json\" {{{{<|message|>}}}} {}",
                literal(&format!("{name} ")),
                json_of(schema)
            ),
            Form::QwenCoder => {
                let all = self.properties(schema, "", &mut |of, key, value| of.parameter(key, value, schema));
                let (open, close) = (literal(&format!("<function={name}>\n")), literal("</function>"));
                format!("{open} {all} {close}")
            }
            Form::Glm => {
                let all = self.properties(schema, "", &mut |of, key, value| of.tagged(key, value, schema));
                format!("{} {all}", literal(&format!("{name}\n")))
            }
            Form::Lfm2 => {
                let all = self.properties(schema, ", ", &mut |of, key, value| {
                    let value = of.rule(&json_of(&with_definitions(value, schema)));
                    format!("{} {value}", literal(&format!("{key}=")))
                });
                format!("{} {all} \")\"", literal(&format!("{name}(")))
            }
            Form::Gemma | Form::FunctionGemma => {
                let all = self.bare_object(schema, 0);
                format!("{} {all}", literal(name))
            }
        };
        self.rule(&body)
    }

    /// The properties of an object, required ones first, separated by `between`.
    fn properties(
        &mut self,
        schema: &Json,
        between: &str,
        one: &mut dyn FnMut(&mut Grammar, &str, &Json) -> String,
    ) -> String {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let required = schema.get("required").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let is_required = |key: &str| required.iter().any(|r| r == key);
        let mut all: Vec<(String, bool)> = Vec::new();
        for (key, value) in properties {
            let body = one(self, key, value);
            all.push((self.rule(&body), is_required(key)));
        }
        // The sort is stable, so properties otherwise keep the schema's order.
        all.sort_by_key(|(_, required)| !required);
        let between = literal(between);
        let joined = |rest: &[(String, bool)]| {
            let more = |(name, required): &(String, bool)| match required {
                true => format!(" {between} {name}"),
                false => format!(" ({between} {name})?"),
            };
            rest.iter().map(more).collect::<String>()
        };
        match all.first() {
            None => String::new(),
            Some((first, true)) => format!("{first}{}", joined(&all[1..])),
            // All are optional, so any may come first.
            Some(_) => {
                let from = |i: usize| format!("{}{}", all[i].0, joined(&all[i + 1..]));
                let body: Vec<String> = (0..all.len()).map(from).collect();
                format!("{}?", self.rule(&body.join(" | ")))
            }
        }
    }

    /// A string that does not contain `end`, or one of the strings that the schema lists.
    fn text(&mut self, schema: &Json, end: &str) -> String {
        let listed = schema.get("enum").and_then(Json::as_array).cloned();
        let listed = listed.or_else(|| schema.get("const").map(|c| vec![c.clone()]));
        if let Some(listed) = listed {
            let texts: Vec<String> = listed.iter().filter_map(Json::as_str).map(literal).collect();
            return format!("({})", texts.join(" | "));
        }
        let escaped =
            |c: char| if "\\/|?*+.()[]{}^$&~".contains(c) { format!("\\{c}") } else { c.to_string() };
        let end: String = end.chars().map(escaped).collect();
        let name = format!("T{}", self.rules.lines().count());
        let length = |key: &str| schema.get(key).and_then(Json::as_u64).filter(|n| *n <= MAX_LENGTH);
        let least = length("minLength").unwrap_or(0);
        let most = length("maxLength").map_or_else(String::new, |n| n.to_string());
        let _ = writeln!(self.rules, "{name}: /(?s:.{{{least},{most}}})/ & ~/(?s:.*){end}(?s:.*)/");
        name
    }

    /// A `<parameter=key>` tag with its value.
    fn parameter(&mut self, key: &str, value: &Json, schema: &Json) -> String {
        let value = if is_text(value) {
            self.text(value, "</parameter>")
        } else {
            self.rule(&json_of(&with_definitions(value, schema)))
        };
        format!("{} {value} {}", literal(&format!("<parameter={key}>\n")), literal("\n</parameter>\n"))
    }

    /// An `<arg_key>` and an `<arg_value>` tag.
    fn tagged(&mut self, key: &str, value: &Json, schema: &Json) -> String {
        let value = if is_text(value) {
            self.text(value, "</arg_value>")
        } else {
            self.rule(&json_of(&with_definitions(value, schema)))
        };
        let key = literal(key);
        format!(
            r#"{{{{<arg_key>}}}} {key} {{{{</arg_key>}}}} "\n" {{{{<arg_value>}}}} {value} {{{{</arg_value>}}}} "\n""#
        )
    }

    /// An object with unquoted keys.
    fn bare_object(&mut self, schema: &Json, depth: usize) -> String {
        let all = self.properties(schema, ",", &mut |of, key, value| {
            let value = of.bare(value, depth + 1);
            format!("{} {value}", literal(&format!("{key}:")))
        });
        format!("\"{{\" {all} \"}}\"")
    }

    /// A value in Gemma's form.
    fn bare(&mut self, schema: &Json, depth: usize) -> String {
        // Numbers, booleans and null are written as in JSON.
        let any = json!({"type": ["integer", "boolean", "null"]});
        if depth > MAX_DEPTH {
            return self.rule(&json_of(&any));
        }
        if is_text(schema) {
            let quote = self.form.quote().unwrap_or("\"");
            let text = self.text(schema, quote);
            return format!("{{{{{quote}}}}} {text} {{{{{quote}}}}}");
        }
        match schema.get("type").and_then(Json::as_str) {
            Some("array") => {
                let item = self.bare(schema.get("items").unwrap_or(&any), depth + 1);
                let item = self.rule(&item);
                format!("\"[\" ({item} (\",\" {item})*)? \"]\"")
            }
            Some("object") => self.bare_object(schema, depth),
            Some("integer" | "number" | "boolean" | "null") => self.rule(&json_of(schema)),
            _ => self.rule(&json_of(&any)),
        }
    }
}

/// Whether a schema allows only strings.
fn is_text(schema: &Json) -> bool {
    let texts =
        |all: &Json| all.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(Json::is_string));
    schema.get("type").is_some_and(|kind| kind == "string")
        || schema.get("enum").is_some_and(texts)
        || schema.get("const").is_some_and(Json::is_string)
}

fn json_of(schema: &Json) -> String {
    format!("%json {}", on_one_line(schema.clone()))
}

/// A part of a schema, with the definitions that it may refer to.
fn with_definitions(part: &Json, whole: &Json) -> Json {
    let mut part = part.clone();
    if let Json::Object(map) = &mut part {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = whole.get(key) {
                map.insert(key.into(), definitions.clone());
            }
        }
    }
    part
}
