//! What a server does under load: several clients at once, each with streamed answers one after another.
//!
//!     cargo build --release -p dollop-cli && cargo run --release -p dollop-benches --bin load -- \
//!         --clients 1,2,4,8,16 --requests 4 --tokens 64 -- target/release/dollop serve --listen 127.0.0.1:0 --parallel 16
//!
//! Prints a row for each number of clients: total tokens per second, time to the first token, fairness (the
//! slowest client's rate by the fastest one's), and memory. Ends with an error if the server's counters are not
//! what the clients counted, or if its memory was above its plan.

use dollop_benches::http;
use dollop_benches::served::{Resident, Served};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Time between two samples of the memory.
const EVERY: Duration = Duration::from_millis(20);

const WORDS: [&str; 12] = [
    "river", "stone", "morning", "engine", "garden", "letter", "winter", "market", "copper", "island",
    "window", "song",
];

struct Options {
    clients: Vec<usize>,
    requests: usize,
    tokens: usize,
    prompt: usize,
    server: Vec<String>,
}

fn options() -> Result<Options, Failure> {
    let mut args = std::env::args().skip(1);
    let mut o =
        Options { clients: vec![1, 2, 4, 8, 16], requests: 4, tokens: 64, prompt: 64, server: Vec::new() };
    while let Some(name) = args.next() {
        if name == "--" {
            o.server = args.collect();
            return Ok(o);
        }
        let value = args.next().ok_or("a value is missing")?;
        match &*name {
            "--clients" => o.clients = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--requests" => o.requests = value.parse()?,
            "--tokens" => o.tokens = value.parse()?,
            "--prompt" => o.prompt = value.parse()?,
            _ => return Err(format!("{name}?").into()),
        }
    }
    Err("load [--clients N,N…] [--requests N] [--tokens N] [--prompt WORDS] -- dollop serve …".into())
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    /// Seconds to the first token, of each request.
    first: Vec<f64>,
    /// Tokens generated, and prompt tokens.
    tokens: u64,
    prompt: u64,
    seconds: f64,
}

/// A client's requests. Each prompt is another one, so nothing is reused.
fn client(served: &Served, o: &Options, id: usize) -> Result<Seen, Failure> {
    let (mut seen, start) = (Seen::default(), Instant::now());
    for request in 0..o.requests {
        let word = |i: usize| WORDS[(i * i + 7 * i * id + 3 * request + id) % WORDS.len()];
        let text: Vec<&str> = (0..o.prompt).map(word).collect();
        let prompt = format!("Story {id} {request}: {}", text.join(" "));
        let body = json!({"prompt": prompt, "max_tokens": o.tokens, "ignore_eos": true, "stream": true, "seed": request,
            "stream_options": {"include_usage": true}});
        let asked = Instant::now();
        let mut reply = http::open(served.address, "POST", "/v1/completions", body.to_string().as_bytes())?;
        if reply.status != 200 {
            let status = reply.status;
            return Err(format!("status {status}: {}", reply.text()?).into());
        }
        let mut all = reply.part()?.unwrap_or_default();
        seen.first.push(asked.elapsed().as_secs_f64());
        while let Some(part) = reply.part()? {
            all.extend(part);
        }
        let events = http::events(&String::from_utf8(all)?);
        let usage = events.iter().rev().find_map(|e| e.get("usage").filter(|u| !u.is_null()));
        let usage = usage.ok_or("a stream without usage")?;
        let tokens = usage["completion_tokens"].as_u64().unwrap_or(0);
        if tokens != o.tokens as u64 {
            return Err(format!("{tokens} tokens instead of {}", o.tokens).into());
        }
        seen.tokens += tokens;
        seen.prompt += usage["prompt_tokens"].as_u64().unwrap_or(0);
    }
    seen.seconds = start.elapsed().as_secs_f64();
    Ok(seen)
}

/// Samples the memory until `done`. Returns the largest value and the number of samples.
fn watch(served: &Served, done: &AtomicBool) -> Result<(Resident, usize), Failure> {
    let (mut most, mut samples) = (Resident::default(), 0);
    while !done.load(Ordering::Relaxed) {
        let now = served.resident()?;
        most = Resident { all: most.all.max(now.all), anonymous: most.anonymous.max(now.anonymous) };
        samples += 1;
        std::thread::sleep(EVERY);
    }
    Ok((most, samples))
}

fn row(served: &Served, o: &Options, clients: usize) -> Result<(), Failure> {
    let (before, start, done) = (served.metrics()?, Instant::now(), AtomicBool::new(false));
    let (seen, memory) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(served, &done));
        let running: Vec<_> = (0..clients).map(|id| scope.spawn(move || client(served, o, id))).collect();
        let seen: Result<Vec<Seen>, Failure> = running
            .into_iter()
            .map(|one| one.join().map_err(|_| Failure::from("a client panicked"))?)
            .collect();
        done.store(true, Ordering::Relaxed);
        (seen, watching.join().map_err(|_| Failure::from("the watch panicked")))
    });
    let (seen, (most, samples), seconds) = (seen?, memory??, start.elapsed().as_secs_f64());
    let after = served.metrics()?;
    let since = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let mut first: Vec<f64> = seen.iter().flat_map(|s| s.first.clone()).collect();
    first.sort_by(f64::total_cmp);
    let rates = seen.iter().map(|s| s.tokens as f64 / s.seconds);
    let (slow, fast) = rates.fold((f64::MAX, 0.0f64), |(low, high), rate| (low.min(rate), high.max(rate)));
    let (tokens, prompt) =
        (seen.iter().map(|s| s.tokens).sum::<u64>(), seen.iter().map(|s| s.prompt).sum::<u64>());
    let planned = after.get("dollop_planned_bytes").copied().unwrap_or(0.0) as u64;
    let mb = |bytes: u64| bytes >> 20;
    println!(
        "| {clients} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} of {} ({samples}) |",
        tokens as f64 / seconds,
        first[first.len() / 2],
        first[first.len() - 1],
        slow / fast,
        since("dollop_step_tokens_total") / since("dollop_steps_total").max(1.0),
        mb(most.all),
        mb(most.anonymous),
        mb(planned),
    );
    let requests = (clients * o.requests) as f64;
    for (name, counted) in [
        ("dollop_generated_tokens_total", tokens as f64),
        ("dollop_prompt_tokens_total", prompt as f64),
        ("dollop_requests_total{route=\"/v1/completions\",status=\"200\"}", requests),
    ] {
        if since(name) != counted {
            return Err(format!("{name} grew by {}, and the clients counted {counted}", since(name)).into());
        }
    }
    if most.anonymous > planned {
        return Err(format!("{} bytes in memory, and {planned} planned", most.anonymous).into());
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let o = options()?;
    let served = Served::start(&o.server)?;
    println!(
        "| clients | tok/s | first token, s: median | worst | fairness | answers a step | MB in memory | without files, of the plan (samples) |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for &clients in &o.clients {
        row(&served, &o, clients)?;
    }
    let panics = served.panics();
    if !panics.is_empty() || !served.stop()? {
        return Err(format!("the server failed: {panics:?}").into());
    }
    Ok(())
}
