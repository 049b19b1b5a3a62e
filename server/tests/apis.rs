//! Gates 130 and 131: answers of each API. A streamed answer equals the unstreamed one. A seed reproduces an
//! answer. An answer that reuses a session's tokens equals that of a fresh server.

mod support;

use serde_json::{Value as Json, json};
use support::{Running, joined};

const QUESTION: &str = "What is the capital of France?";

fn chat(n: usize) -> Json {
    json!({"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": n, "temperature": 0})
}

fn with(mut body: Json, more: Json) -> Json {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn gate_130_chat_completions_stream_what_they_say_whole() {
    let server = Running::new(|_| {});
    let whole = server.post("/v1/chat/completions", &chat(24)).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.len() > 20, "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = server.post("/v1/chat/completions", &with(chat(24), stream));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert!(reply.text.ends_with("data: [DONE]\n\n"));
    let events = reply.events();
    assert!(events.len() > 8, "it came in pieces: {}", events.len());
    assert_eq!(joined(&events, "/choices/0/delta/content"), text);
    assert_eq!(joined(&events, "/choices/0/finish_reason"), "length");
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], 24);
    let (prompt, cached) = (&usage["prompt_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]);
    assert_eq!(
        prompt.as_u64().unwrap() - support::engine().least_call() as u64,
        cached.as_u64().unwrap(),
        "all but what is always prefilled was kept"
    );
}

#[test]
fn gate_130_every_api_streams_what_it_says_whole() {
    let server = Running::new(|_| {});
    let said = server.post("/v1/chat/completions", &chat(12)).json();
    let said = said["choices"][0]["message"]["content"].as_str().unwrap().to_owned();

    let body = json!({"model": "m", "input": QUESTION, "max_output_tokens": 12, "temperature": 0});
    let whole = server.post("/v1/responses", &body).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], said);
    assert_eq!((&whole["status"], &whole["usage"]["output_tokens"]), (&json!("incomplete"), &json!(12)));
    let events = server.post("/v1/responses", &with(body, json!({"stream": true}))).events();
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert_eq!(
        kinds[kinds.len() - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == i));
    assert_eq!(joined(&events, "/delta"), said);
    assert_eq!(events.last().unwrap()["response"]["output"][0]["content"][0]["text"], said);

    let body = json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        "max_tokens": 12, "temperature": 0});
    let whole = server.post("/v1/messages", &body).json();
    assert_eq!((&whole["content"][0]["text"], &whole["stop_reason"]), (&json!(said), &json!("max_tokens")));
    let events = server.post("/v1/messages", &with(body, json!({"stream": true}))).events();
    assert_eq!(joined(&events, "/delta/text"), said);
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 12);
    assert_eq!(events.last().unwrap()["type"], "message_stop");

    let options = json!({"temperature": 0, "num_predict": 12});
    let body =
        json!({"model": "m:latest", "messages": [{"role": "user", "content": QUESTION}], "options": options});
    let events = server.post("/api/chat", &body).events();
    assert_eq!(joined(&events, "/message/content"), said);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["eval_count"]),
        (&json!(true), &json!("length"), &json!(12))
    );
    let whole = server.post("/api/chat", &with(body, json!({"stream": false}))).json();
    assert_eq!(whole["message"]["content"], said);

    let body = json!({"model": "m", "prompt": QUESTION, "options": options});
    assert_eq!(joined(&server.post("/api/generate", &body).events(), "/response"), said);
}

#[test]
fn gate_130_texts_are_continued_as_they_are() {
    let server = Running::new(|_| {});
    let ids = server.post("/tokenize", &json!({"content": "Once upon a time"})).json()["tokens"].clone();
    assert_eq!(server.post("/detokenize", &json!({"tokens": ids})).json()["content"], "Once upon a time");
    let body = json!({"model": "m", "prompt": ["Once upon a time", ids], "max_tokens": 8, "temperature": 0, "n": 2, "echo": true});
    let whole = server.post("/v1/completions", &body).json();
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert!(
        texts.iter().all(|t| *t == texts[0] && t.starts_with("Once upon a time") && t.len() > 20),
        "{texts:?}"
    );
    let events = server.post("/v1/completions", &with(body, json!({"stream": true}))).events();
    for choice in 0..4 {
        let own: Vec<Json> = events.iter().filter(|e| e["choices"][0]["index"] == choice).cloned().collect();
        assert_eq!(joined(&own, "/choices/0/text"), texts[0]);
    }
}

#[test]
fn gate_130_seeds_stops_and_sampling_are_honoured() {
    let server = Running::new(|_| {});
    let content = |body: &Json| {
        let reply = server.post("/v1/chat/completions", body).json();
        reply["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["message"]["content"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let hot = |seed: u64| with(chat(16), json!({"temperature": 1.5, "seed": seed, "n": 3}));
    let (first, again, other) = (content(&hot(5)), content(&hot(5)), content(&hot(6)));
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
    assert_eq!(first[1..], other[..2], "answer i has the seed + i");

    let plain = content(&chat(24)).remove(0);
    let word = plain.split(' ').nth(3).unwrap();
    let stopped =
        server.post("/v1/chat/completions", &with(chat(24), json!({"stop": ["no such text", word]}))).json();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["message"]["content"], plain.split_once(word).unwrap().0);
    let anthropic = with(chat(24), json!({"stop_sequences": ["no such text", word]}));
    let stopped = server.post("/v1/messages", &anthropic).json();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(word)));

    // A bias of -100 bans the token.
    let first_id = server.post("/tokenize", &json!({"content": plain})).json()["tokens"][0].clone();
    let bias = json!({"logit_bias": {first_id.to_string(): -100}});
    let other = content(&with(chat(24), bias)).remove(0);
    assert_ne!(server.post("/tokenize", &json!({"content": other})).json()["tokens"][0], first_id);
}

#[test]
fn gate_131_a_kept_conversation_changes_no_answer() {
    let fresh = Running::new(|_| {});
    let server = Running::new(|o| o.parallel = 2);
    let mut messages = vec![json!({"role": "system", "content": "You answer in one sentence."})];
    // Tokens of the conversation so far, with and without its last answer.
    let (mut cached, mut before, exact) = (0, 0, support::engine().least_call() == 1);
    for question in [QUESTION, "And of Italy?", "Which is larger?"] {
        messages.push(json!({"role": "user", "content": question}));
        let likely = json!({"logprobs": true, "top_logprobs": 5});
        let body = json!({"model": "m", "messages": messages, "max_tokens": 20, "temperature": 0});
        let body = with(body, likely);
        // A different conversation in between takes the other session.
        server.post("/v1/completions", &json!({"prompt": "Something else", "max_tokens": 2})).json();
        let reply = server.post("/v1/chat/completions", &body).json();
        // The reference server must reuse nothing, so replace what its session holds.
        fresh.post("/v1/completions", &json!({"prompt": "x y z", "max_tokens": 1})).json();
        let alone = fresh.post("/v1/chat/completions", &body).json();
        // With their log probabilities: the logits have the same bits.
        assert_eq!(reply["choices"], alone["choices"]);
        assert_eq!(reply["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 20);
        assert!(alone["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() < 4);
        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        // Where it can be exact, the last answer is reused as well, but for its last token.
        assert!(!exact || before == 0 || cached >= before + 19, "{cached} of {before} and 20 tokens");
        before = reply["usage"]["prompt_tokens"].as_u64().unwrap();
        messages.push(reply["choices"][0]["message"].clone());
    }
    assert!(cached > 60, "{cached} tokens of the last turn were kept");
}

#[test]
fn gate_130_the_server_describes_itself() {
    let server = Running::new(|o| o.parallel = 2);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "m");
    assert_eq!(server.get("/v1/models/m").json()["id"], "m");
    server.get("/v1/models/other").error(404);
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "m:latest");
    let show = server.post("/api/show", &json!({"model": "m"})).json();
    assert_eq!(
        (&show["capabilities"][0], &show["details"]["family"]),
        (&json!("completion"), &json!("qwen2moe"))
    );
    assert_eq!(server.get("/api/version").json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.get("/health").json()["status"], "ok");
    let plan = server.get("/v1/plan").json();
    assert_eq!((&plan["sessions"]["count"], &plan["sessions"]["context"]), (&json!(2), &json!(512)));
    assert!(plan["total_bytes"].as_u64().unwrap() > 50 << 20);
    let prompt = server.post("/apply-template", &chat(1)).json()["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.contains(QUESTION) && prompt.ends_with("assistant\n"), "{prompt}");
    server.post("/v1/chat/completions", &chat(4)).json();
    assert_eq!(server.metric("dollop_generated_tokens_total"), 4.0);
    let counted = server.post("/v1/messages/count_tokens", &chat(1)).json()["input_tokens"].as_f64();
    assert_eq!(counted, Some(server.metric("dollop_prompt_tokens_total")));
    assert!(
        server
            .get("/metrics")
            .text
            .contains("dollop_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1")
    );
}
