//! Gate 190: log probabilities. In each API, streamed and whole, they are the log-softmax of the logits that the
//! runtime computes for the same tokens, whatever sampling and constraints do with them.

mod support;

use dollop::SessionOptions;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use support::{Running, engine, joined};

/// Largest difference to the reference. Logits have the same bits; the sum is rounded in another order.
const NEAR: f64 = 1e-5;

fn with(mut body: Json, more: Json) -> Json {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - f64::from(most) - sum.ln()).collect()
}

fn bytes(of: &Json) -> Vec<u8> {
    of["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect()
}

fn near(got: &Json, want: f64) -> bool {
    got.as_f64().is_some_and(|got| (got - want).abs() < NEAR)
}

/// Compares a list of tokens with a session of the runtime that continues `prompt` with the same tokens.
/// Returns how many of them were the likeliest.
fn check(prompt: &str, list: &Json, top: usize) -> usize {
    let engine = engine();
    let tokenizer = engine.tokenizer().unwrap();
    let vocab = engine.info().vocab as u32;
    let ids: HashMap<Vec<u8>, u32> = (0..vocab).rev().map(|id| (tokenizer.bytes(id), id)).collect();
    let mut session = engine.session(SessionOptions::default().with_context(512)).unwrap();
    let mut logits = session.last_logits(&tokenizer.encode(prompt, false).unwrap()).unwrap();
    let (mut likeliest, list) = (0, list.as_array().unwrap());
    for (i, of) in list.iter().enumerate() {
        let want = log_softmax(&logits);
        let id = ids[&bytes(of)];
        assert!(near(&of["logprob"], want[id as usize]), "token {i}: {of}: {}", want[id as usize]);
        let mut order: Vec<usize> = (0..want.len()).collect();
        order.sort_by(|&a, &b| want[b].total_cmp(&want[a]));
        let tops = of["top_logprobs"].as_array().unwrap();
        assert_eq!(tops.len(), top);
        for (of, &id) in tops.iter().zip(&order) {
            assert_eq!(bytes(of), tokenizer.bytes(id as u32));
            assert_eq!(of["token"], *String::from_utf8_lossy(&bytes(of)));
            assert!(near(&of["logprob"], want[id]), "{of}: {}", want[id]);
        }
        likeliest += usize::from(order[0] == id as usize);
        logits = session.last_logits(&[id]).unwrap();
    }
    assert!(list.len() > 3, "{} tokens", list.len());
    likeliest
}

/// The tokens of all events.
fn lists(events: &[Json], pointer: &str) -> Json {
    let each = events.iter().filter_map(|e| e.pointer(pointer)?.as_array());
    each.flatten().cloned().collect()
}

fn text(list: &Json) -> String {
    let all: Vec<u8> = list.as_array().unwrap().iter().flat_map(bytes).collect();
    String::from_utf8(all).unwrap()
}

fn ask(more: Json) -> Json {
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let greedy = json!({"messages": messages, "max_tokens": 20, "temperature": 0, "repeat_penalty": 1});
    with(greedy, more)
}

fn prompt(server: &Running) -> String {
    server.post("/apply-template", &ask(json!({}))).json()["prompt"].as_str().unwrap().to_owned()
}

#[test]
fn gate_190_every_api_gives_the_log_softmax_of_the_logits() {
    let (server, path) = (Running::new(|_| {}), "/v1/chat/completions");
    let prompt = prompt(&server);
    let body = ask(json!({"logprobs": true, "top_logprobs": 5}));
    let whole = server.post(path, &body).json();
    let choice = &whole["choices"][0];
    let list = &choice["logprobs"]["content"];
    assert_eq!(check(&prompt, list, 5), 20, "at temperature 0, every token is the likeliest");
    assert_eq!(choice["message"]["content"], text(list));
    let events = server.post(path, &with(body, json!({"stream": true}))).events();
    assert_eq!(&lists(&events, "/choices/0/logprobs/content"), list);
    let parts = events.iter().filter(|e| !e["choices"][0]["logprobs"].is_null()).count();
    assert!(parts > 8, "they came with their text: {parts}");
    let none = server.post(path, &ask(json!({"logprobs": true}))).json();
    check(&prompt, &none["choices"][0]["logprobs"]["content"], 0);
    assert!(server.post(path, &ask(json!({}))).json()["choices"][0]["logprobs"].is_null());

    let wanted = json!({"top_logprobs": 5, "include": ["message.output_text.logprobs"]});
    let body = json!({"input": "What is the capital of France?", "max_output_tokens": 20, "temperature": 0, "repeat_penalty": 1});
    let body = with(body, wanted);
    let whole = server.post("/v1/responses", &body).json();
    assert_eq!(&whole["output"][0]["content"][0]["logprobs"], list);
    let events = server.post("/v1/responses", &with(body, json!({"stream": true}))).events();
    let deltas: Vec<Json> = events.iter().filter(|e| !e["delta"].is_null()).cloned().collect();
    assert_eq!(&lists(&deltas, "/logprobs"), list);
    let done = events.iter().find(|e| e["type"] == "response.output_text.done").unwrap();
    assert_eq!(&done["logprobs"], list);
    assert_eq!(&events.last().unwrap()["response"]["output"][0]["content"][0]["logprobs"], list);

    let options = json!({"temperature": 0, "num_predict": 20, "repeat_penalty": 1});
    let body = ask(json!({"logprobs": true, "top_logprobs": 5, "options": options}));
    assert_eq!(&lists(&server.post("/api/chat", &body).events(), "/logprobs"), list);
    let whole = server.post("/api/chat", &with(body, json!({"stream": false}))).json();
    assert_eq!(&whole["logprobs"], list);
    let body =
        json!({"prompt": prompt, "raw": true, "logprobs": true, "top_logprobs": 5, "options": options});
    assert_eq!(&lists(&server.post("/api/generate", &body).events(), "/logprobs"), list);

    let body = json!({"prompt": prompt, "logprobs": 3, "max_tokens": 20, "temperature": 0, "repeat_penalty": 1, "n": 2});
    let whole = server.post("/v1/completions", &body).json();
    for choice in whole["choices"].as_array().unwrap() {
        let (likely, said) = (&choice["logprobs"], choice["text"].as_str().unwrap());
        assert_eq!(likely["tokens"].as_array().unwrap().len(), 20);
        for (i, of) in list.as_array().unwrap().iter().enumerate() {
            assert_eq!((&likely["tokens"][i], &likely["token_logprobs"][i]), (&of["token"], &of["logprob"]));
            let named = |of: &Json| (of["token"].as_str().unwrap().to_owned(), of["logprob"].clone());
            let top: Json =
                Json::Object(of["top_logprobs"].as_array().unwrap()[..3].iter().map(named).collect());
            assert_eq!(likely["top_logprobs"][i], top);
            let offset = likely["text_offset"][i].as_u64().unwrap() as usize;
            let rest: String = said.chars().skip(offset).collect();
            assert!(rest.starts_with(of["token"].as_str().unwrap()), "{offset}: {rest}");
        }
    }
    let events = server.post("/v1/completions", &with(body, json!({"stream": true}))).events();
    for choice in 0..2 {
        let own: Vec<Json> = events.iter().filter(|e| e["choices"][0]["index"] == choice).cloned().collect();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let all = lists(&own, &format!("/choices/0/logprobs/{name}"));
            assert_eq!(all, whole["choices"][choice]["logprobs"][name]);
        }
    }
}

#[test]
fn gate_190_sampling_and_constraints_change_no_log_probability() {
    let server = Running::new(|_| {});
    let (prompt, path) = (prompt(&server), "/v1/chat/completions");
    let likely = json!({"logprobs": true, "top_logprobs": 2});
    let hot =
        json!({"temperature": 1.8, "seed": 3, "logit_bias": {"100": 4}, "top_k": 60, "presence_penalty": 1});
    let whole = server.post(path, &with(ask(hot), likely.clone())).json();
    let list = &whole["choices"][0]["logprobs"]["content"];
    assert!(check(&prompt, list, 2) < list.as_array().unwrap().len(), "not every token was the likeliest");

    // Forced tokens have log probabilities, too, and the answer is the same as without them.
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "fine": {"type": "boolean"}},
        "required": ["city", "fine"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let body = ask(json!({"response_format": format, "max_tokens": 60}));
    let plain = server.post(path, &body).json();
    let whole = server.post(path, &with(body, likely.clone())).json();
    let (said, list) =
        (&whole["choices"][0]["message"]["content"], &whole["choices"][0]["logprobs"]["content"]);
    assert_eq!(said, &plain["choices"][0]["message"]["content"]);
    assert_eq!(text(list), said.as_str().unwrap());
    assert_eq!(whole["usage"]["completion_tokens"], list.as_array().unwrap().len());
    assert!(check(&prompt, list, 2) < list.as_array().unwrap().len(), "the schema forced some tokens");

    // Tokens of a stop string are left out; a token that only begins in the answer stays.
    let body = with(ask(likely), json!({"max_tokens": 24}));
    let said = server.post(path, &body).json()["choices"][0]["message"]["content"].clone();
    let stop = said.as_str().unwrap().split(' ').nth(3).unwrap().to_owned();
    for stream in [false, true] {
        let reply = server.post(path, &with(body.clone(), json!({"stop": [stop], "stream": stream})));
        let (said, list) = match stream {
            true => {
                let events = reply.events();
                (joined(&events, "/choices/0/delta/content"), lists(&events, "/choices/0/logprobs/content"))
            }
            false => {
                let choice = &reply.json()["choices"][0];
                (
                    choice["message"]["content"].as_str().unwrap().to_owned(),
                    choice["logprobs"]["content"].clone(),
                )
            }
        };
        let (spelled, last) = (text(&list), bytes(list.as_array().unwrap().last().unwrap()).len());
        assert!(spelled.starts_with(&said) && spelled.len() < said.len() + last, "{said:?}, {spelled:?}");
        assert!(!list.as_array().unwrap().is_empty());
    }
}

#[test]
fn gate_190_limits_are_checked() {
    let server = Running::new(|_| {});
    for (path, body, field) in [
        ("/v1/chat/completions", json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        ("/v1/chat/completions", json!({"top_logprobs": 2}), "top_logprobs"),
        ("/v1/chat/completions", json!({"logprobs": 1}), "logprobs"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": 6}), "logprobs"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": true}), "logprobs"),
        ("/v1/completions", json!({"prompt": "x", "logprobs": 1, "echo": true}), "logprobs"),
        ("/v1/responses", json!({"input": "x", "top_logprobs": 21}), "top_logprobs"),
        ("/v1/responses", json!({"input": "x", "top_logprobs": -1}), "top_logprobs"),
    ] {
        let error = server.post(path, &ask(body)).error(400);
        assert_eq!(error["error"]["param"], field, "{path}: {error}");
    }
    let error = server.post("/api/chat", &ask(json!({"logprobs": true, "top_logprobs": 21}))).error(400);
    assert!(error["error"].as_str().unwrap().starts_with("top_logprobs"), "{error}");
}
