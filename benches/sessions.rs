//! The time to save, restore and fork a session, and its size in bytes.
//!
//!     cargo run --release -p dollop-benches --bin sessions -- MODEL.gguf TOKENS FOLDER
//!
//! The first run computes a session and saves it, the best of five times. A second one restores it once, like
//! a restarted program, including the time in which the system provides the memory.

use dollop::{Engine, EngineOptions, SessionOptions};
use std::path::Path;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

/// Seconds of the fastest of five.
fn best(mut run: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let usage = "sessions MODEL.gguf TOKENS FOLDER";
    let (model, tokens, folder) =
        (args.next().ok_or(usage)?, args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let n: usize = tokens.parse()?;
    let options = EngineOptions::default().with_context(n);
    let engine = Engine::open(Path::new(&model), &options)?;
    let path = Path::new(&folder).join("bench.session");
    let rate = |name: &str, bytes: u64, seconds: f64| {
        println!("{name}: {:.1} ms, {:.2} GB/s", 1e3 * seconds, bytes as f64 / seconds / 1e9);
    };
    if let Ok(saved) = std::fs::metadata(&path) {
        let start = Instant::now();
        let mut session = engine.load_session(&path, SessionOptions::default())?;
        rate("load", saved.len(), start.elapsed().as_secs_f64());
        session.rewind(n - 1);
        session.best(&[1], 1)?;
        std::fs::remove_file(&path)?;
        return Ok(());
    }
    let mut session = engine.session(SessionOptions::default())?;
    let vocab = engine.info().vocab as u32;
    let ids: Vec<u32> = (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) % vocab).collect();
    let start = Instant::now();
    session.best(&ids, 1)?;
    println!("{n} tokens computed in {:.2} s", start.elapsed().as_secs_f64());

    let bytes = session.save(&path)?;
    println!("{bytes} bytes, {:.0} a token", bytes as f64 / n as f64);
    rate("save", bytes, best(|| session.save(&path).map(drop).map_err(Into::into))?);
    let nowhere = || session.write_to(&mut std::io::sink()).map(drop).map_err(Into::into);
    rate("write to nowhere", bytes, best(nowhere)?);
    let start = Instant::now();
    let fork = session.fork()?;
    rate("fork", bytes, start.elapsed().as_secs_f64());
    drop(fork);
    Ok(())
}
