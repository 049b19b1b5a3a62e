//! Gates 132 to 134. A client that disconnects ends its generation. Requests beyond the queue get 429.
//! Requests without access and invalid requests are refused in the API's own error format.

mod support;

use serde_json::{Value as Json, json};
use std::time::Duration;
use support::{Open, Running};

/// The body of a request that would generate until the context is full.
fn long(stream: bool) -> Vec<u8> {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "Tell a story."}], "ignore_eos": true, "stream": stream});
    body.to_string().into_bytes()
}

fn begin(server: &Running, stream: bool) -> Open {
    server.open("POST", "/v1/chat/completions", &[], &long(stream))
}

#[test]
fn gate_132_hanging_up_ends_a_generation() {
    let server = Running::new(|_| {});
    let mut open = begin(&server, true);
    open.until("\"content\":\" ");
    drop(open);
    server.wait("dollop_requests_cancelled_total", 1.0);
    let open = begin(&server, false);
    server.wait("dollop_requests_running", 1.0);
    drop(open);
    server.wait("dollop_requests_cancelled_total", 2.0);
    server.wait("dollop_requests_running", 0.0);
    assert!(server.metric("dollop_generated_tokens_total") < 900.0, "neither went to the context's end");
    // The session is usable again.
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    server.post("/v1/chat/completions", &body).json();
}

#[test]
fn gate_133_a_full_queue_says_when_to_come_back() {
    let server = Running::new(|o| o.queue = 1);
    let mut runs = begin(&server, true);
    runs.until("\"content\":\" ");
    let waits = begin(&server, false);
    server.wait("dollop_requests_waiting", 1.0);
    let reply = server.send("POST", "/v1/chat/completions", &[], &long(false));
    assert_eq!(reply.error(429)["error"]["type"], "rate_limit_error");
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    // A client that disconnects while waiting leaves the queue.
    drop(waits);
    server.wait("dollop_requests_waiting", 0.0);
    let waits = begin(&server, false);
    server.wait("dollop_requests_waiting", 1.0);
    drop(runs);
    server.wait("dollop_requests_waiting", 0.0);
    drop(waits);
    server.wait("dollop_requests_running", 0.0);
}

#[test]
fn gate_133_a_server_that_stops_ends_what_runs() {
    let server = Running::new(|o| o.grace = Duration::from_millis(1));
    let mut runs = begin(&server, true);
    runs.until("\"content\":\" ");
    server.stop.cancel();
    let error = runs.until("\"error\"");
    assert!(error.contains("stopping"), "{error}");
    server.join();

    // With a longer grace period, a running answer finishes. New requests are refused meanwhile.
    let server = Running::new(|o| o.grace = Duration::from_secs(600));
    let mut body: Json = serde_json::from_slice(&long(true)).unwrap();
    body["max_tokens"] = 150.into();
    let mut runs = server.open("POST", "/v1/chat/completions", &[], body.to_string().as_bytes());
    runs.until("\"content\":\" ");
    server.stop.cancel();
    while server.get("/health").status == 200 {}
    assert_eq!(begin(&server, false).reply().error(503)["error"]["type"], "server_error");
    runs.until("finish_reason\":\"length");
    runs.until("[DONE]");
    server.join();
}

#[test]
fn gate_134_who_may_not_use_the_server_is_refused() {
    let server = Running::new(|o| {
        o.key = Some("secret".into());
        o.cors.push("https://app.example".into());
    });
    let key = ("authorization", "Bearer secret");
    for (path, kind) in
        [("/v1/chat/completions", "/error/code"), ("/v1/messages", "/error/type"), ("/api/chat", "/error")]
    {
        let json = server.send("POST", path, &[], b"{}").error(401);
        assert!(json.pointer(kind).is_some_and(|v| v.is_string()), "{json}");
    }
    assert_eq!(server.send("GET", "/v1/models", &[key], b"").status, 200);
    assert_eq!(server.send("GET", "/v1/models", &[("x-api-key", "secret")], b"").status, 200);
    assert_eq!(server.send("GET", "/v1/models", &[key, ("host", "evil.example")], b"").status, 403);
    assert_eq!(server.send("GET", "/v1/models", &[key, ("origin", "https://evil.example")], b"").status, 403);
    let ask = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    let reply = server.send("OPTIONS", "/v1/chat/completions", &ask, b"");
    assert_eq!(
        (reply.status, reply.header("access-control-allow-origin")),
        (204, Some("https://app.example"))
    );
}

#[test]
fn gate_134_what_is_no_request_is_refused_in_the_apis_form() {
    let server = Running::new(|o| o.max_body_bytes = 20_000);
    let message = |path: &str, json: &Json| {
        let at = if path.starts_with("/api/") { &json["error"] } else { &json["error"]["message"] };
        at.as_str().unwrap_or_else(|| panic!("{path}: {json}")).to_owned()
    };
    let words = |path: &str, body: &Json, status: u16, word: &str| {
        let said = message(path, &server.post(path, body).error(status));
        assert!(said.contains(word), "{path} {body}: {said}");
    };
    let chats = ["/v1/chat/completions", "/v1/messages", "/api/chat"];
    let hello = json!([{"role": "user", "content": "Hi"}]);
    for path in chats {
        for bad in ["", "{", "[1]", "\u{0}", "{\"messages\": 3}"] {
            let reply = server.send("POST", path, &[], bad.as_bytes());
            message(path, &reply.error(400));
        }
        message(path, &server.send("POST", path, &[], &vec![b' '; 30_000]).error(413));
        words(path, &json!({"model": "gpt-4o", "messages": hello, "max_tokens": 1}), 404, "gpt-4o");
        let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
        words(path, &json!({"messages": image, "max_tokens": 1}), 400, "text only");
        let long = json!([{"role": "user", "content": "word ".repeat(2000)}]);
        words(path, &json!({"messages": long, "max_tokens": 1}), 400, "too long");
        message(path, &server.get(path).error(405));
    }
    let refused = [
        ("logprobs", json!("yes")),
        ("top_logprobs", json!(3)),
        ("n", json!(9)),
        ("temperature", json!("hot")),
        ("functions", json!([{}])),
        ("stop", json!([""])),
        ("max_tokens", json!(0)),
        ("logit_bias", json!({"999999": 1})),
        ("top_p", json!(2)),
        ("stream", json!("yes")),
    ];
    for (name, value) in refused {
        let reply = server.post("/v1/chat/completions", &json!({"messages": hello, name: value}));
        let said = message("/", &reply.error(400)).replace('-', "_");
        assert!(said.contains(name), "{name}: {said}");
    }
    words("/v1/responses", &json!({"input": "Hi", "previous_response_id": "resp_1"}), 400, "stored");
    words("/v1/messages", &json!({"messages": hello}), 400, "max_tokens");
    words("/api/generate", &json!({"prompt": "Hi", "options": {"num_ctx": 100_000}}), 400, "num_ctx");
    words("/v1/completions", &json!({"prompt": []}), 400, "prompt");
    words("/detokenize", &json!({"tokens": [4_000_000]}), 400, "tokens");
    server.get("/nothing").error(404);
}

#[test]
fn gate_134_a_slow_client_does_not_keep_a_connection() {
    use std::io::{Read, Write};
    let server = Running::new(|o| {
        o.read_timeout = Duration::from_millis(200);
        o.max_connections = 1;
    });
    let mut slow = std::net::TcpStream::connect(server.address).unwrap();
    slow.write_all(b"GET /health HT").unwrap();
    // The server allows one connection. The read timeout must free it for the next client.
    assert_eq!(server.get("/health").status, 200);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    let mut slow = std::net::TcpStream::connect(server.address).unwrap();
    slow.write_all(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{").unwrap();
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("HTTP/1.1 408"), "{rest}");
}
