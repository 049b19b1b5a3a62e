//! Scores answers that must call a tool, and tells a model about tools.

use super::score::Verdict;
use super::{json, schema};
use dollop::Chat;
use dollop::template::{ChatTemplate, Message, RenderContext};
use serde_json::{Map, Value as Json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Where the prompt describes the tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// By the chat template, as the model was trained.
    Template,
    /// By our system prompt, if the template shows no tools.
    System,
    /// By the same text before the question, if the template has no system prompt.
    Question,
}

impl Shown {
    /// The best way that this template supports.
    pub fn by(template: &ChatTemplate, tools: &[Json]) -> Shown {
        let render = |messages: &[Message], tools: Option<Json>| {
            template
                .render(messages, &RenderContext { tools, ..RenderContext::default() })
                .unwrap_or_default()
        };
        let user = Message::new("user", "Hello");
        let name = |tool: &Json| tool["function"]["name"].as_str().unwrap_or_default().to_owned();
        let shown = render(std::slice::from_ref(&user), Some(tools.into()));
        if tools.iter().all(|tool| shown.contains(&name(tool))) {
            return Shown::Template;
        }
        let marked = render(&[Message::new("system", "b1f7"), user], None);
        if marked.contains("b1f7") { Shown::System } else { Shown::Question }
    }

    /// A note for the user, unless the template shows the tools.
    pub fn note(self) -> Option<&'static str> {
        match self {
            Shown::Template => None,
            Shown::System => {
                Some("the chat template shows no tools: they are described in the system prompt")
            }
            Shown::Question => {
                Some("the chat template shows no tools: they are described before the question")
            }
        }
    }

    /// Begins a conversation with `tools`; returns the prompt to send.
    pub fn begin(
        self,
        chat: &mut Chat,
        variables: &mut Map<String, Json>,
        tools: &[Json],
        ask: &str,
    ) -> String {
        match self {
            Shown::Template => drop(variables.insert("tools".to_owned(), tools.into())),
            Shown::System => chat.set_system(Some(description(tools))),
            Shown::Question => return format!("{}\n\n{ask}", description(tools)),
        }
        ask.to_owned()
    }
}

/// A description of tools for a model whose template does not show them.
fn description(tools: &[Json]) -> String {
    let list: Vec<String> = tools.iter().map(Json::to_string).collect();
    format!(
        "You can call these tools:\n{}\n\nTo call a tool, answer with its name and its arguments, and nothing else, like this:\n{OPEN}\n{{\"name\": \"NAME\", \"arguments\": {{\"ARGUMENT\": \"VALUE\"}}}}\n{CLOSE}",
        list.join("\n")
    )
}

/// Right if the answer makes one well-formed call of the tool `name`, with arguments of the required types.
pub fn score(answer: &str, tools: &[Json], name: &str) -> Verdict {
    let (called, arguments) = call(answer)?;
    if called != name {
        return Err(format!("calls `{called}`, not `{name}`"));
    }
    let tool = tools.iter().map(|tool| &tool["function"]).find(|tool| tool["name"] == name);
    let parameters = &tool.ok_or("the tool was not offered")?["parameters"];
    if let Some(key) = arguments.keys().find(|key| parameters["properties"].get(key.as_str()).is_none()) {
        return Err(format!("`{name}` has no argument `{key}`"));
    }
    schema::check(&Json::Object(arguments), parameters)
}

/// The only call of an answer: between its tags with text around them, or the whole answer. Some models put it in a
/// list.
fn call(answer: &str) -> Result<(String, Map<String, Json>), String> {
    let value = match answer.split_once(OPEN) {
        None => json::parse(answer).map_err(|e| format!("calls no tool: the answer {e}"))?,
        Some((_, rest)) => {
            let (inner, behind) = rest.split_once(CLOSE).ok_or(format!("has no {CLOSE}"))?;
            if behind.contains(OPEN) {
                return Err("calls several times".to_owned());
            }
            json::parse(inner)?
        }
    };
    let one = match value {
        Json::Array(mut list) if list.len() == 1 => list.remove(0),
        Json::Array(list) => return Err(format!("calls {} times", list.len())),
        other => other,
    };
    let Json::Object(mut call) = one else { return Err("the call is no object".to_owned()) };
    let (name, arguments) = (call.remove("name"), call.remove("arguments"));
    if let Some(key) = call.keys().next() {
        return Err(format!("the call has a key `{key}`"));
    }
    match (name, arguments) {
        (Some(Json::String(name)), Some(Json::Object(arguments))) => Ok((name, arguments)),
        (Some(Json::String(_)), _) => Err("the call has no object `arguments`".to_owned()),
        _ => Err("the call has no string `name`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn timer() -> Vec<Json> {
        let minutes = json!({"type": "integer", "minimum": 1});
        let parameters =
            json!({"type": "object", "properties": {"minutes": minutes}, "required": ["minutes"]});
        vec![json!({"type": "function", "function": {"name": "set_timer", "parameters": parameters}})]
    }

    #[test]
    fn a_call_is_well_formed_and_of_the_right_tool() {
        let good = r#"{"name": "set_timer", "arguments": {"minutes": 10}}"#;
        let tagged = |inner: &str| format!("<tool_call>\n{inner}\n</tool_call>");
        for answer in [
            good.to_owned(),
            tagged(good),
            format!("I will do that.\n{}\nDone.", tagged(good)),
            tagged(&format!("[{good}]")),
            format!("[{good}]"),
            format!("```json\n{good}\n```"),
        ] {
            assert_eq!(score(&answer, &timer(), "set_timer"), Ok(()), "{answer}");
        }
        for (answer, why) in [
            (String::new(), "no JSON"),
            ("The timer is set.".to_owned(), "no JSON"),
            (format!("Sure: {good}"), "no JSON"),
            (format!("<tool_call>\n{good}"), "has no </tool_call>"),
            (tagged("{'name': 'set_timer'}"), "no JSON"),
            (tagged(&good.replace("}}", "}")), "no JSON"),
            (tagged(good).repeat(2), "several times"),
            (format!("[{good}, {good}]"), "calls 2 times"),
            ("[]".to_owned(), "calls 0 times"),
            (good.replace("set_timer", "set_alarm"), "calls `set_alarm`"),
            (good.replace("minutes", "time"), "no argument `time`"),
            (good.replace("10", "\"10\""), ".minutes is a string"),
            (good.replace("10", "0"), "out of range"),
            (good.replace("\"minutes\": 10", ""), "no key `minutes`"),
            (r#"{"name": "set_timer", "arguments": "{}"}"#.to_owned(), "no object `arguments`"),
            (r#"{"name": "set_timer"}"#.to_owned(), "no object `arguments`"),
            (r#"{"arguments": {"minutes": 10}}"#.to_owned(), "no string `name`"),
            (r#"{"name": "set_timer", "arguments": {"minutes": 1}, "x": 1}"#.to_owned(), "a key `x`"),
            ("\"set_timer\"".to_owned(), "no object"),
        ] {
            let said = score(&answer, &timer(), "set_timer").expect_err(&answer);
            assert!(said.contains(why), "{answer}: {said}");
        }
    }

    #[test]
    fn templates_are_asked_whether_they_show_tools() {
        let by = |source: &str| Shown::by(&ChatTemplate::parse(source).unwrap(), &timer());
        let all = "{% for m in messages %}{{ m.content }}{% endfor %}";
        assert_eq!(by(&format!("{{{{ tools | tojson }}}}{all}")), Shown::Template);
        assert_eq!(by(&format!("{{% if tools %}}I have tools.{{% endif %}}{all}")), Shown::System);
        assert_eq!(by(all), Shown::System);
        assert_eq!(by("{{ messages[-1].content }}"), Shown::Question);
        let refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}";
        assert_eq!(by(&format!("{refuses}{all}")), Shown::Question);
        assert!(description(&timer()).contains("set_timer"));
    }
}
