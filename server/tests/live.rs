//! Gates 144, 167 and 168. The page may run only its own script and has the same access control as the APIs.
//! Events of `/v1/live` match the engine's state. The memory budget changes while an answer is generated.

mod support;

use dollop::{Engine, EngineOptions, Error, Level, Precision};
use serde_json::{Value as Json, json};
use support::{Open, Running, joined};

/// The default model at 4 bits, streamed, with `more` bytes above the smallest budget.
fn streamed(more: u64) -> Engine {
    let options = || {
        EngineOptions::default().with_context(512).with_precision(Precision::Exact(Level::B4)).with_threads(2)
    };
    let path = dollop_tests::default_model();
    let Err(Error::Budget { smallest, .. }) = Engine::plan(&path, &options().with_memory(1)) else {
        panic!("a budget of one byte fits")
    };
    Engine::open(&path, &options().with_memory(smallest + more)).unwrap()
}

fn ask(tokens: usize, stream: bool) -> Json {
    json!({"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "stream": stream})
}

fn event(watch: &mut Open) -> Json {
    let line = watch.until("data: ");
    serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()
}

#[test]
fn gate_144_the_page_runs_nothing_but_its_own() {
    let server = Running::new(|o| {
        o.key = Some("secret".into());
        o.hosts.push("box.example".into());
    });
    let page = server.get("/");
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/page.licences.txt", "text/plain"),
    ] {
        let reply = server.get(path);
        let header =
            |name: &str| reply.header(name).unwrap_or_else(|| panic!("{path}: no {name}")).to_owned();
        assert!(
            reply.status == 200 && reply.text.len() > 300 && header("content-type").starts_with(kind),
            "{path}"
        );
        let policy = header("content-security-policy");
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
        assert_eq!((&*header("x-content-type-options"), &*header("x-frame-options")), ("nosniff", "DENY"));
        assert!(page.text.contains(path), "the page uses {path}, or it is of no use");
        // The page's files have the same checks of `Host` and `Origin` as the APIs.
        assert_eq!(server.send("GET", path, &[("host", "evil.example")], b"").status, 403);
        assert_eq!(server.send("GET", path, &[("origin", "https://evil.example")], b"").status, 403);
        assert_eq!(server.send("GET", path, &[("host", "box.example")], b"").status, 200);
    }
    // The policy has no `unsafe-inline`, so browsers would silently ignore inline scripts and styles.
    let scripts: Vec<&str> = page.text.split("<script").skip(1).collect();
    assert!(scripts.len() == 1 && scripts[0].contains("src=\"/page.js\"></script>"), "{}", page.text);
    assert!(!page.text.contains("<style") && !page.text.contains(" style=") && !page.text.contains(" on"));
    for (method, path) in [("GET", "/v1/live"), ("POST", "/v1/memory"), ("GET", "/v1/plan")] {
        assert_eq!(server.send(method, path, &[], b"{}").status, 401, "{path}");
        let (key, evil) = (("authorization", "Bearer secret"), ("origin", "https://evil.example"));
        assert_eq!(server.send(method, path, &[key, evil], b"{}").status, 403, "{path}");
    }
}

#[test]
fn gate_167_the_live_picture_is_what_the_engine_holds() {
    let engine = streamed(4 << 20);
    let server = Running::of(engine.clone(), |_| {});
    let mut watch = server.open("GET", "/v1/live", &[], b"");
    let first = event(&mut watch);
    assert_eq!((&first["tokens"], &first["stream"]["bytes_read"]), (&json!(0), &json!(0)));
    let answer = server.open("POST", "/v1/chat/completions", &[], ask(24, false).to_string().as_bytes());
    let (mut pictures, mut reads, mut tokens, mut bytes) = (Vec::new(), 0, 0, 0);
    let last = loop {
        let event = event(&mut watch);
        tokens += event["tokens"].as_u64().unwrap();
        bytes += event["stream"]["bytes_read"].as_u64().unwrap();
        let digits =
            |of: &Json| of.as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_owned()).collect();
        let read: Vec<String> = digits(&event["experts"]["reads"]);
        reads += read.concat().bytes().filter(|&b| b != b'0').count();
        pictures.push(digits(&event["experts"]["bits"]) as Vec<String>);
        if tokens == 24 && event["running"] == 0 {
            break event;
        }
    };
    assert_eq!(answer.reply().json()["usage"]["completion_tokens"], 24);
    // The engine is idle now, so the last event must equal its state.
    let held = engine.held_experts().unwrap();
    let text = |bits: Vec<u8>| bits.iter().map(u8::to_string).collect::<String>();
    let own: Vec<String> = held.iter().map(|layer| text(layer.iter().map(|e| e.bits).collect())).collect();
    assert_eq!(pictures.last().unwrap(), &own);
    let (info, stats) = (engine.info(), engine.stream_stats().unwrap());
    assert_eq!((own.len(), own[0].len()), (info.layers, info.experts));
    // Nothing was prefetched, so every plane that missed the cache was read once.
    let missing = |p: usize| stats.planes_wanted[p] - stats.planes_hit[p];
    let planes: u64 = held.iter().flatten().map(|e| u64::from(e.reads)).sum();
    assert_eq!(planes, (0..5).map(missing).sum::<u64>());
    assert_eq!(bytes, stats.bytes_wanted + stats.bytes_ahead + stats.bytes_embedding);
    assert_eq!(last["memory"]["total_bytes"], engine.memory_plan().total_bytes());
    pictures.dedup();
    assert!(
        pictures.len() > 2 && reads > 100 && stats.evictions > 0,
        "{} pictures, {reads} reads",
        pictures.len()
    );
    // A watching client does not keep the server from stopping.
    server.stop.cancel();
    assert!(watch.reply_is_over());
    server.join();
}

#[test]
fn gate_167_what_does_not_stream_says_so_and_watchers_are_limited() {
    let server = Running::new(|_| {});
    let mut watches: Vec<Open> = (0..16).map(|_| server.open("GET", "/v1/live", &[], b"")).collect();
    for watch in &mut watches {
        let event = event(watch);
        assert!(event["experts"].is_null() && event["stream"].is_null(), "{event}");
        assert!(
            event["memory"]["least_bytes"].is_null() && event["memory"]["total_bytes"].as_u64().unwrap() > 0
        );
    }
    let refused = server.get("/v1/live");
    assert_eq!(refused.error(429)["error"]["type"], "rate_limit_error");
    drop(watches);
    // A slot becomes free only when the server has noticed a disconnected client.
    let start = std::time::Instant::now();
    loop {
        let mut watch = server.open("GET", "/v1/live", &[], b"");
        if watch.line().contains("200") {
            break;
        }
        assert!(start.elapsed().as_secs() < 600);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let small = server.post("/v1/memory", &json!({"bytes": 1})).error(400);
    assert!(small["error"]["message"].as_str().unwrap().contains("not streamed"), "{small}");
}

#[test]
fn gate_168_the_budget_changes_while_an_answer_is_written() {
    let engine = streamed(6 << 20);
    let budget = engine.memory_plan().budget.unwrap();
    let server = Running::of(engine.clone(), |o| o.max_memory = Some(budget + (4 << 20)));
    let content = "/choices/0/delta/content";
    let want = joined(&server.post("/v1/chat/completions", &ask(64, true)).events(), content);
    let mut memory = event(&mut server.open("GET", "/v1/live", &[], b""))["memory"].take();
    let least = memory["least_bytes"].as_u64().unwrap();
    assert_eq!(
        (memory["budget"].as_u64(), memory["most_bytes"].as_u64()),
        (Some(budget), Some(budget + (4 << 20)))
    );

    let mut open = server.open("POST", "/v1/chat/completions", &[], ask(64, true).to_string().as_bytes());
    let mut said = String::new();
    let mut given = 0;
    for bytes in [least, budget + (4 << 20), least + (1 << 20), budget] {
        for _ in 0..4 {
            said += &piece(&mut open);
        }
        let done = server.post("/v1/memory", &json!({"bytes": bytes})).json();
        given += done["given_back_bytes"].as_u64().unwrap();
        memory = done["memory"].clone();
        let total = memory["total_bytes"].as_u64().unwrap();
        assert!(
            memory["budget"] == bytes && total <= bytes && total + (2 << 20) > bytes,
            "{bytes}: {memory}"
        );
    }
    assert_eq!(server.metric("dollop_requests_running"), 1.0, "it was not over before the last change");
    said += &joined(&open.rest(), content);
    assert_eq!(said, want);
    let stats = engine.stream_stats().unwrap();
    assert!(stats.resizes == 4 && given > 0 && stats.bytes_given_back == given, "{stats:?}");
    for (bytes, word) in
        [(json!(least - 1), "at least"), (json!(budget * 2), "--max-memory"), (json!("much"), "bytes")]
    {
        let refused = server.post("/v1/memory", &json!({"bytes": bytes})).error(400);
        assert_eq!(refused["error"]["param"], "bytes");
        assert!(refused["error"]["message"].as_str().unwrap().contains(word), "{refused}");
    }
    assert_eq!(engine.memory_plan().budget, Some(budget), "a refused budget changes nothing");
}

/// The text of the next event with a non-empty text.
fn piece(open: &mut Open) -> String {
    loop {
        let event = event(open);
        if let Some(text) =
            event.pointer("/choices/0/delta/content").and_then(Json::as_str).filter(|t| !t.is_empty())
        {
            return text.to_owned();
        }
    }
}
