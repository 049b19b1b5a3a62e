//! Continues a text under a memory budget, event by event, and prints statistics of expert streaming:
//!
//!     cargo run --release -p dollop --example stream -- MODEL.gguf MEGABYTES 'Once upon a time'

use dollop::{Engine, EngineOptions, Event, GenerateOptions, SessionOptions};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, megabytes, text] = &args[..] else {
        return Err("usage: stream MODEL.gguf MEGABYTES TEXT".into());
    };
    let options = EngineOptions::default().with_memory(megabytes.parse::<u64>()? << 20).with_context(512);
    let engine = Engine::open(model, &options)?;
    let mut session = engine.session(SessionOptions::default())?;
    let prompt = engine.encode_text(text)?;
    let options = GenerateOptions::default()
        .with_max_tokens(64)
        .with_sampling(engine.sampling().clone())
        .with_stop(["\n\n"]);

    let mut events = session.stream(&prompt, &options)?;
    print!("{text}");
    for event in events.by_ref() {
        match event? {
            Event::Prefill { done, total } => eprintln!("read {done} of {total} tokens"),
            Event::Token { text, .. } | Event::Rest { text } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            _ => {}
        }
    }
    println!();
    if let Some(outcome) = events.outcome() {
        eprintln!(
            "{:?} after {} tokens, {:.1} a second",
            outcome.stop,
            outcome.tokens.len(),
            outcome.decode_tps()
        );
    }
    match engine.stream_stats() {
        Some(stats) => eprintln!(
            "{:.1} bits on average, {:.0} % of the planes were in memory, {} MB read",
            stats.mean_bits(),
            100.0 * stats.hit_rate(),
            stats.bytes_wanted >> 20
        ),
        None => eprintln!("everything fits: nothing was streamed"),
    }
    Ok(())
}
