//! A chat in the terminal, one line per turn:
//!
//!     cargo run --release -p dollop --example chat -- MODEL [MEGABYTES]
//!
//! MODEL is a Dollop file, a GGUF file or a Hugging Face folder. The last two are converted once, into the
//! folder `models` beside it.

use dollop::{Chat, Engine, EngineOptions, Event, GenerateOptions, Overflow, SessionOptions};
use std::io::{BufRead, Write};
use std::ops::ControlFlow;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let model = args.next().ok_or("usage: chat MODEL [MEGABYTES]")?;
    let cache = Path::new(&model).with_file_name("models");
    let mut options = EngineOptions::default().with_cache(cache);
    if let Some(megabytes) = args.next() {
        options = options.with_memory(megabytes.to_string_lossy().parse::<u64>()? << 20);
    }
    let engine = Engine::open_with(&model, &options, &mut |p| {
        eprint!("\r{}: {} of {} MB", p.stage, p.done >> 20, p.total >> 20);
        ControlFlow::Continue(())
    })?;
    eprintln!("\r{}: {}, {}", engine.info().name, engine.info().mode, engine.info().backend);

    let mut chat = Chat::new(engine.session(SessionOptions::default())?, None, Overflow::Slide)?;
    let options = GenerateOptions::default().with_sampling(engine.sampling().clone());
    for line in std::io::stdin().lock().lines() {
        let mut out = std::io::stdout();
        chat.send(&line?, &options, &mut |event| {
            let (Event::Token { text, .. } | Event::Rest { text }) = event else {
                return ControlFlow::Continue(());
            };
            // If standard output is closed, stop the generation.
            match write!(out, "{text}").and_then(|()| out.flush()) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        println!();
    }
    Ok(())
}
