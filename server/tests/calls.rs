//! Gate 136: tools and schemas. A tool call that the model writes arrives as a call in every API, streamed
//! and unstreamed. An answer with a required schema is valid under it.

mod support;

use dollop::{Engine, EngineOptions};
use dollop_tests::talker::Talker;
use serde_json::{Value as Json, json};
use support::{Running, joined};

const SAID: &str = "Sure.<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln \\\"am\\\" Rhein\", \"days\": 3}}</tool_call>";
const TEMPLATE: &str = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% endif %}{% endfor %}{{ '\n' }}";

fn arguments() -> Json {
    json!({"city": "Köln \"am\" Rhein", "days": 3})
}

fn schema() -> Json {
    json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"], "additionalProperties": false})
}

fn with(mut body: Json, more: Json) -> Json {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A server whose model answers every request with [`SAID`].
fn caller(folder: &std::path::Path) -> Running {
    Talker::saying(SAID, TEMPLATE).write(&folder.join("model"));
    let options = EngineOptions::default().with_cache(folder.join("cache"));
    Running::of(Engine::open(folder.join("model"), &options).unwrap(), |_| {})
}

#[test]
fn gate_136_a_call_is_a_call_in_every_api() {
    let folder = tempfile::tempdir().unwrap();
    let server = caller(folder.path());
    let function = json!({"name": "weather", "description": "The weather", "parameters": schema()});
    let messages = json!([{"role": "user", "content": "How is it?"}]);
    let stream = json!({"stream": true});

    let body =
        json!({"messages": messages, "tools": [{"type": "function", "function": function}], "max_tokens": 9});
    let whole = server.post("/v1/chat/completions", &body).json();
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Sure."))
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["function"]["name"], parsed(call["function"]["arguments"].as_str().unwrap())),
        (&json!("weather"), arguments())
    );
    let events = server.post("/v1/chat/completions", &with(body.clone(), stream.clone())).events();
    assert_eq!(joined(&events, "/choices/0/delta/tool_calls/0/function/name"), "weather");
    assert_eq!(parsed(&joined(&events, "/choices/0/delta/tool_calls/0/function/arguments")), arguments());
    assert_eq!(joined(&events, "/choices/0/finish_reason"), "tool_calls");

    // The client sends the call and its result back; the template must render both.
    let back = json!([messages[0], choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "Rain"}]);
    let prompt = server.post("/apply-template", &json!({"messages": back})).json()["prompt"].clone();
    assert!(
        prompt.as_str().unwrap().contains("Köln \"am\" Rhein")
            && prompt.as_str().unwrap().contains("tool: Rain"),
        "{prompt}"
    );

    // Without tools, the same output is plain text.
    let none = with(body.clone(), json!({"tool_choice": "none"}));
    let text = server.post("/v1/chat/completions", &none).json()["choices"][0]["message"]["content"].clone();
    assert_eq!(text, SAID);

    let tool = json!({"name": "weather", "input_schema": schema()});
    let anthropic = json!({"messages": messages, "tools": [tool], "max_tokens": 9});
    let whole = server.post("/v1/messages", &anthropic).json();
    assert_eq!((&whole["stop_reason"], &whole["content"][0]["text"]), (&json!("tool_use"), &json!("Sure.")));
    assert_eq!(
        (&whole["content"][1]["name"], &whole["content"][1]["input"]),
        (&json!("weather"), &arguments())
    );
    let events = server.post("/v1/messages", &with(anthropic, stream.clone())).events();
    assert_eq!(parsed(&joined(&events, "/delta/partial_json")), arguments());

    let responses =
        json!({"input": "How is it?", "tools": [with(function.clone(), json!({"type": "function"}))]});
    let whole = server.post("/v1/responses", &responses).json();
    assert_eq!(
        (&whole["output"][1]["type"], parsed(whole["output"][1]["arguments"].as_str().unwrap())),
        (&json!("function_call"), arguments())
    );
    let events = server.post("/v1/responses", &with(responses, stream)).events();
    let done = events.iter().find(|e| e["type"] == "response.function_call_arguments.done").unwrap();
    assert_eq!(parsed(done["arguments"].as_str().unwrap()), arguments());
    assert_eq!(events.last().unwrap()["response"]["output"][1]["name"], "weather");

    let ollama = json!({"messages": messages, "tools": body["tools"]});
    let events = server.post("/api/chat", &ollama).events();
    let called: Vec<&Json> =
        events.iter().filter_map(|e| e.pointer("/message/tool_calls/0/function")).collect();
    assert_eq!((called.len(), &called[0]["arguments"]), (1, &arguments()));
    assert_eq!(server.post("/api/show", &json!({})).json()["capabilities"], json!(["completion", "tools"]));
}

#[test]
fn gate_136_answers_obey_their_schema() {
    let server = Running::new(|_| {});
    let messages = json!([{"role": "user", "content": "A city and a number of days, please."}]);
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "fine": {"type": "boolean"}},
        "required": ["city", "fine"], "additionalProperties": false});
    let good = |text: &Json| {
        let value = parsed(text.as_str().unwrap());
        assert!(
            ["Rome", "Oslo"].contains(&value["city"].as_str().unwrap()) && value["fine"].is_boolean(),
            "{value}"
        );
    };
    let named =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let chat = json!({"messages": messages, "max_tokens": 60, "seed": 1, "response_format": named});
    let whole = server.post("/v1/chat/completions", &chat).json();
    good(&whole["choices"][0]["message"]["content"]);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let events = server.post("/v1/chat/completions", &with(chat.clone(), json!({"stream": true}))).events();
    good(&joined(&events, "/choices/0/delta/content").into());
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": schema}});
    let whole = server
        .post("/v1/responses", &json!({"input": "A city", "max_output_tokens": 60, "text": format}))
        .json();
    good(&whole["output"][0]["content"][0]["text"]);
    let ollama =
        json!({"messages": messages, "format": schema, "stream": false, "options": {"num_predict": 60}});
    good(&server.post("/api/chat", &ollama).json()["message"]["content"]);

    // A schema that cannot be compiled is refused with 400, also before a stream begins.
    for stream in [false, true] {
        let bad = json!({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}});
        let reply = server.post(
            "/v1/chat/completions",
            &with(chat.clone(), json!({"response_format": bad, "stream": stream})),
        );
        assert_eq!(reply.error(400)["error"]["type"], "invalid_request_error");
    }
    // The default model's template does not support tools.
    let tools = json!({"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]});
    assert_eq!(server.post("/v1/chat/completions", &tools).error(400)["error"]["param"], "tools");
}
