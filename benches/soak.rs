//! A long run of mixed requests against one server: every API, streamed and whole, hang-ups and bad input.
//!
//!     cargo build --release -p dollop-cli && cargo run --release -p dollop-benches --bin soak -- \
//!         --requests 100000 -- target/release/dollop serve --listen 127.0.0.1:0 --parallel 4 --queue 64
//!
//! Answers are compared with those of the same requests at the start. Ends with an error for a wrong answer, a
//! wrong status, a panic, a counter of the server that is not what the clients counted, or memory that grows.

use dollop_benches::http;
use dollop_benches::served::Served;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Clients at once.
const CLIENTS: usize = 8;
/// Share of the requests after which memory is taken as the base of growth.
const WARM: f64 = 0.1;
/// Growth of memory that is no leak: caches of the allocator, metrics.
const GROWTH_BYTES: u64 = 24 << 20;

/// A request whose answer is known.
struct Case {
    path: &'static str,
    body: Json,
    /// Where each event of a stream has its text, and where a whole answer has it.
    pointers: [&'static str; 2],
}

fn cases() -> Vec<Case> {
    let hello = |text: &str| json!([{"role": "user", "content": text}]);
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
        "additionalProperties": false});
    let named = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let mut all = Vec::new();
    for (i, text) in
        ["Hello!", "What is the capital of France?", "Count to five.", "Grüße aus Köln 🚀"].iter().enumerate()
    {
        let n = 4 + i;
        let mut add = |path, body, pointers| all.push(Case { path, body, pointers });
        let chat = ["/choices/0/delta/content", "/choices/0/message/content"];
        let body = json!({"messages": hello(text), "max_tokens": n, "seed": i});
        add("/v1/chat/completions", body.clone(), chat);
        let mut likely = body.clone();
        (likely["logprobs"], likely["top_logprobs"], likely["temperature"]) =
            (true.into(), 3.into(), 0.into());
        add("/v1/chat/completions", likely, chat);
        let mut obeys = body.clone();
        (obeys["response_format"], obeys["max_tokens"]) = (named.clone(), 24.into());
        add("/v1/chat/completions", obeys, chat);
        let body = json!({"prompt": text, "max_tokens": n, "seed": i, "temperature": 1.2});
        add("/v1/completions", body, ["/choices/0/text", "/choices/0/text"]);
        let body = json!({"input": text, "max_output_tokens": n, "temperature": 0});
        add("/v1/responses", body, ["/delta", "/output/0/content/0/text"]);
        let body = json!({"messages": hello(text), "max_tokens": n, "temperature": 0});
        add("/v1/messages", body, ["/delta/text", "/content/0/text"]);
        let options = json!({"num_predict": n, "seed": i});
        let body = json!({"messages": hello(text), "options": options});
        add("/api/chat", body, ["/message/content", "/message/content"]);
        let body = json!({"prompt": text, "options": options});
        add("/api/generate", body, ["/response", "/response"]);
    }
    all
}

/// Bad requests, with the status that each gets.
fn bad() -> Vec<(&'static str, Vec<u8>, u16)> {
    let text = |json: Json| json.to_string().into_bytes();
    let hello = json!([{"role": "user", "content": "Hi"}]);
    vec![
        ("/v1/chat/completions", b"{".to_vec(), 400),
        ("/v1/chat/completions", vec![0xff; 100], 400),
        ("/v1/chat/completions", text(json!({"messages": hello, "temperature": "hot"})), 400),
        ("/v1/chat/completions", text(json!({"messages": hello, "model": "another"})), 404),
        ("/v1/chat/completions", text(json!({"messages": hello, "top_logprobs": 99})), 400),
        (
            "/v1/chat/completions",
            text(
                json!({"messages": hello, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
            ),
            400,
        ),
        ("/v1/messages", text(json!({"messages": hello})), 400),
        ("/v1/responses", text(json!({"input": "x", "background": true})), 400),
        ("/v1/completions", text(json!({"prompt": "word ".repeat(20_000)})), 400),
        ("/api/chat", text(json!({"messages": [{"role": "nobody"}]})), 400),
        ("/api/generate", text(json!({"prompt": "x", "options": {"num_ctx": 1_000_000}})), 400),
        ("/tokenize", b"[]".to_vec(), 400),
        ("/detokenize", text(json!({"tokens": [1e9]})), 400),
        ("/nothing", Vec::new(), 404),
        ("/v1/models/another", Vec::new(), 405),
    ]
}

/// What all clients share.
struct Soak<'a> {
    served: &'a Served,
    cases: Vec<(Case, String)>,
    bad: Vec<(&'static str, Vec<u8>, u16)>,
    next: AtomicUsize,
    total: usize,
    faults: Mutex<Vec<String>>,
    /// Responses by route and status; and requests of which it is not known whether the server counted them.
    counted: Mutex<BTreeMap<(String, u16), u64>>,
    unsure: AtomicU64,
    tokens: AtomicU64,
    kinds: Mutex<BTreeMap<&'static str, u64>>,
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text of a reply: that of a whole answer, or of all events.
fn said(case: &Case, stream: bool, text: &str) -> String {
    let events = match stream {
        true => http::events(text),
        false => serde_json::from_str(text).into_iter().collect(),
    };
    let pointer = case.pointers[usize::from(!stream)];
    // Tool calls and other events of `/v1/responses` have no text there.
    events.iter().filter_map(|e| e.pointer(pointer)?.as_str()).collect()
}

fn body(case: &Case, stream: bool) -> Vec<u8> {
    let mut body = case.body.clone();
    body["stream"] = stream.into();
    body.to_string().into_bytes()
}

/// A small generator of numbers.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

impl Soak<'_> {
    fn count(&self, route: &str, status: u16) {
        let route = if matches!(route, "/nothing" | "/v1/models/another") { "other" } else { route };
        *lock(&self.counted).entry((route.to_owned(), status)).or_default() += 1;
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, String), Failure> {
        let reply = http::open(self.served.address, method, path, body)?;
        let status = reply.status;
        self.count(path, status);
        Ok((status, reply.text()?))
    }

    /// An answer that is known.
    fn known(&self, chance: &mut Chance) -> Result<&'static str, Failure> {
        let (case, want) = &self.cases[chance.below(self.cases.len())];
        let stream = chance.below(2) == 0;
        let (status, text) = self.ask("POST", case.path, &body(case, stream))?;
        let got = said(case, stream, &text);
        if status != 200 || got != *want {
            return Err(format!(
                "{} {}: {status}: {got:?} instead of {want:?}: {text:.300}",
                case.path, case.body
            )
            .into());
        }
        if !stream {
            let usage: Json = serde_json::from_str(&text)?;
            let found = ["/usage/completion_tokens", "/usage/output_tokens", "/eval_count"];
            let tokens = found.iter().find_map(|pointer| usage.pointer(pointer)?.as_u64()).unwrap_or(0);
            self.tokens.fetch_add(tokens, Ordering::Relaxed);
        }
        Ok(if stream { "streamed" } else { "whole" })
    }

    /// A client that disconnects while its answer comes, or before it.
    fn gone(&self, chance: &mut Chance) -> Result<&'static str, Failure> {
        let (case, _) = &self.cases[chance.below(self.cases.len())];
        let mut long = case.body.clone();
        for name in ["max_tokens", "max_output_tokens"] {
            if long.get(name).is_some() {
                long[name] = 400.into();
            }
        }
        long["ignore_eos"] = true.into();
        if long.get("options").is_some() {
            long["options"]["num_predict"] = 400.into();
        }
        let stream = chance.below(2) == 0;
        long["stream"] = stream.into();
        let bytes = long.to_string().into_bytes();
        if stream {
            let mut reply = http::open(self.served.address, "POST", case.path, &bytes)?;
            self.count(case.path, reply.status);
            for _ in 0..chance.below(4) {
                reply.part()?;
            }
            return Ok("hang-up in a stream");
        }
        self.unsure.fetch_add(1, Ordering::Relaxed);
        let stream =
            http::send(self.served.address, &http::request(self.served.address, "POST", case.path, &bytes))?;
        std::thread::sleep(std::time::Duration::from_millis(chance.below(20) as u64));
        drop(stream);
        Ok("hang-up before an answer")
    }

    fn refused(&self, chance: &mut Chance) -> Result<&'static str, Failure> {
        let (path, body, want) = &self.bad[chance.below(self.bad.len())];
        let (status, text) = self.ask("POST", path, body)?;
        match status == *want {
            true => Ok("bad request"),
            false => Err(format!("{path}: {status} instead of {want}: {text:.300}").into()),
        }
    }

    /// Bytes that are no request, or only a part of one.
    fn noise(&self, chance: &mut Chance) -> Result<&'static str, Failure> {
        self.unsure.fetch_add(1, Ordering::Relaxed);
        let whole = http::request(
            self.served.address,
            "POST",
            "/v1/completions",
            br#"{"prompt": "x", "max_tokens": 1}"#,
        );
        let bytes = match chance.below(3) {
            0 => whole[..1 + chance.below(whole.len() - 1)].to_vec(),
            1 => (0..200).map(|_| chance.below(256) as u8).collect(),
            _ => b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        };
        let mut stream = http::send(self.served.address, &bytes)?;
        let _ = stream.flush();
        if bytes.len() == 200 {
            // The server may close the connection or answer with an error.
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 100]);
        }
        Ok("noise")
    }

    fn small(&self, chance: &mut Chance) -> Result<&'static str, Failure> {
        let path = ["/v1/models", "/api/tags", "/health", "/v1/plan", "/api/version", "/"][chance.below(6)];
        if chance.below(2) == 0 {
            let (status, _) = self.ask("GET", path, b"")?;
            return if status == 200 { Ok("description") } else { Err(format!("{path}: {status}").into()) };
        }
        let text = ["Once upon a time", "Grüße 🚀", "{\"a\": [1, 2]}", " \n\t"][chance.below(4)];
        let tokens = self.ask("POST", "/tokenize", json!({"content": text}).to_string().as_bytes())?.1;
        let tokens: Json = serde_json::from_str(&tokens)?;
        let back = self.ask("POST", "/detokenize", tokens.to_string().as_bytes())?.1;
        let back: Json = serde_json::from_str(&back)?;
        if back["content"] == text { Ok("tokens") } else { Err(format!("{text:?} became {back}").into()) }
    }

    fn client(&self, id: usize) {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ (id as u64 + 1) << 32);
        while self.next.fetch_add(1, Ordering::Relaxed) < self.total {
            let result = match chance.below(20) {
                0..=10 => self.known(&mut chance),
                11..=12 => self.gone(&mut chance),
                13..=15 => self.refused(&mut chance),
                16 => self.noise(&mut chance),
                _ => self.small(&mut chance),
            };
            match result {
                Ok(kind) => *lock(&self.kinds).entry(kind).or_default() += 1,
                Err(e) => lock(&self.faults).push(e.to_string()),
            }
        }
    }

    /// Differences between the server's counters and what the clients counted.
    fn differences(&self) -> Result<Vec<String>, Failure> {
        let (metrics, mut out, mut more) = (self.served.metrics()?, Vec::new(), 0);
        let pattern = "dollop_requests_total{route=\"";
        let server = metrics.iter().filter_map(|(name, n)| {
            let (route, rest) = name.strip_prefix(pattern)?.split_once("\",status=\"")?;
            Some(((route.to_owned(), rest.trim_end_matches("\"}").parse().ok()?), *n as u64))
        });
        let (server, clients): (BTreeMap<(String, u16), u64>, _) = (server.collect(), lock(&self.counted));
        let keys: std::collections::BTreeSet<_> = server.keys().chain(clients.keys()).collect();
        for key in keys.into_iter().filter(|(route, _)| route != "/metrics") {
            let (server, own) = (server.get(key).unwrap_or(&0), clients.get(key).unwrap_or(&0));
            match server.checked_sub(*own) {
                // A hang-up before the answer, or noise that was a whole request.
                Some(surplus) if key.1 == 200 || key.1 == 408 || key.1 == 400 => more += surplus,
                Some(0) => {}
                _ => out.push(format!("{key:?}: {server} by the server, {own} by the clients")),
            }
        }
        if more > self.unsure.load(Ordering::Relaxed) {
            out.push(format!("the server counted {more} requests more"));
        }
        let (tokens, own) = (metrics["dollop_generated_tokens_total"], self.tokens.load(Ordering::Relaxed));
        if tokens < own as f64 {
            out.push(format!("{tokens} tokens by the server, {own} by the clients"));
        }
        Ok(out)
    }
}

fn options() -> Result<(usize, Vec<String>), Failure> {
    let mut args = std::env::args().skip(1);
    let mut total = 1000;
    while let Some(name) = args.next() {
        match &*name {
            "--" => return Ok((total, args.collect())),
            "--requests" => total = args.next().ok_or("a value is missing")?.parse()?,
            _ => return Err(format!("{name}?").into()),
        }
    }
    Err("soak [--requests N] -- dollop serve …".into())
}

fn main() -> Result<(), Failure> {
    let (total, command) = options()?;
    let served = Served::start(&command)?;
    let start = Instant::now();
    let mut soak = Soak {
        served: &served,
        cases: Vec::new(),
        bad: bad(),
        next: AtomicUsize::new(0),
        total,
        faults: Mutex::default(),
        counted: Mutex::default(),
        unsure: AtomicU64::new(0),
        tokens: AtomicU64::new(0),
        kinds: Mutex::default(),
    };
    for case in cases() {
        let (status, text) = soak.ask("POST", case.path, &body(&case, false))?;
        if status != 200 {
            return Err(format!("{} {}: {status}: {text}", case.path, case.body).into());
        }
        // Whole answers of the clients are counted, not these.
        let want = said(&case, false, &text);
        soak.cases.push((case, want));
    }
    let warm = Mutex::new(None);
    let first = (total as f64 * WARM) as usize;
    std::thread::scope(|scope| {
        for id in 0..CLIENTS {
            let soak = &soak;
            scope.spawn(move || soak.client(id));
        }
        while soak.next.load(Ordering::Relaxed) < total {
            if soak.next.load(Ordering::Relaxed) >= first && lock(&warm).is_none() {
                *lock(&warm) = served.resident().ok();
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let mut idle = served.metrics()?;
    while idle["dollop_requests_running"] + idle["dollop_requests_waiting"] > 0.0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
        idle = served.metrics()?;
    }
    let (warm, end) = (lock(&warm).unwrap_or_default(), served.resident()?);
    let (faults, mut wrong) = (lock(&soak.faults).clone(), soak.differences()?);
    println!("{total} requests in {:.0} s; {:?}", start.elapsed().as_secs_f64(), lock(&soak.kinds));
    println!(
        "{} wrong answers, {} disconnects seen, {} tokens",
        faults.len(),
        idle["dollop_requests_cancelled_total"],
        idle["dollop_generated_tokens_total"]
    );
    let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "memory without files: {:.1} MB after {first} requests, {:.1} MB at the end",
        mb(warm.anonymous),
        mb(end.anonymous)
    );
    faults.iter().take(20).for_each(|fault| println!("{fault}"));
    if end.anonymous > warm.anonymous + GROWTH_BYTES {
        wrong.push("memory grew".into());
    }
    wrong.extend(served.panics());
    drop(soak);
    if !served.stop()? {
        wrong.push("the server did not end well".into());
    }
    println!("{wrong:?}");
    if faults.is_empty() && wrong.is_empty() { Ok(()) } else { Err("the run failed".into()) }
}
