//! `dollop bench`: tokens per second, in the manner of llama-bench.

use crate::args::BenchArgs;
use crate::output::{bytes, count};
use crate::{Failure, locate};
use dollop::sampler::Sampling;
use dollop::{GenerateOptions, Session, SessionOptions};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Row {
    test: String,
    mean_tps: f64,
    sd_tps: f64,
    tps: Vec<f64>,
    /// Bytes of weights per second, for decoding: those that a token touches times tokens per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_bytes_per_second: Option<f64>,
}

/// What the read test reads: more than the caches of most machines.
const READ_TEST: usize = 1 << 30;

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    if args.repeat == 0 || args.prompt + args.generate == 0 {
        return Err("there is nothing to measure: -r and one of -p and -n must be above zero".into());
    }
    let engine = locate::open(args.model.as_deref(), &args.engine)?;
    let info = engine.info();
    let context = args.depth + args.prompt.max(args.generate + 1);
    let mut session =
        engine.session(SessionOptions { context: Some(args.engine.ctx.unwrap_or(context)), chunk: None })?;
    // Tokens spread over the vocabulary, so that routing sees different inputs.
    let tokens: Vec<u32> = (0..(args.depth + args.prompt).max(1) as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % info.vocab as u32)
        .collect();
    let before = &tokens[..args.depth];
    if !before.is_empty() {
        prompt(&mut session, 0, before)?;
    }
    let mut rows = Vec::new();
    for (name, n) in [("pp", args.prompt), ("tg", args.generate)] {
        if n == 0 {
            continue;
        }
        let mut tps = Vec::new();
        // The first run warms caches and is not counted.
        for run in 0..=args.repeat {
            let seconds = if name == "pp" {
                prompt(&mut session, args.depth, &tokens)?
            } else {
                generate(&mut session, before, n)?
            };
            if run > 0 {
                tps.push(n as f64 / seconds);
            }
        }
        let mean = tps.iter().sum::<f64>() / tps.len() as f64;
        let variance = tps.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (tps.len() - 1).max(1) as f64;
        let rate = (name == "tg").then_some(mean * info.active_bytes as f64);
        let test = if args.depth > 0 { format!("{name}{n} @ d{}", args.depth) } else { format!("{name}{n}") };
        rows.push(Row { test, mean_tps: mean, sd_tps: variance.sqrt(), tps, weight_bytes_per_second: rate });
    }
    let decoded = rows.iter().any(|row| row.weight_bytes_per_second.is_some());
    let ceiling = if decoded { Some(engine.read_bandwidth(READ_TEST)?) } else { None };
    let mut out = std::io::stdout();
    if args.json {
        let json = serde_json::json!({ "model": info, "tests": rows, "read_bytes_per_second": ceiling });
        writeln!(out, "{json}")?;
        return Ok(());
    }
    writeln!(out, "| model | size | params | active | backend | mode | test | t/s |")?;
    writeln!(out, "|---|---:|---:|---:|---|---|---|---:|")?;
    for row in &rows {
        writeln!(
            out,
            "| {} {} | {} | {} | {} | {} | {} | {} | {:.2} ± {:.2} |",
            info.architecture,
            info.name,
            bytes(info.bytes),
            count(info.parameters),
            count(info.active_parameters),
            info.backend,
            info.mode,
            row.test,
            row.mean_tps,
            row.sd_tps
        )?;
    }
    let rate = rows.iter().find_map(|row| row.weight_bytes_per_second);
    if let (Some(rate), Some(ceiling)) = (rate, ceiling) {
        writeln!(
            out,
            "\ndecoding reads {:.1} GB/s of weights, {:.0} % of the {:.1} GB/s that {} thread{} read from memory",
            rate / 1e9,
            100.0 * rate / ceiling,
            ceiling / 1e9,
            engine.threads(),
            if engine.threads() == 1 { "" } else { "s" }
        )?;
    }
    Ok(())
}

/// Seconds that the tokens beyond the first `depth`, which are in the cache, take.
fn prompt(session: &mut Session, depth: usize, tokens: &[u32]) -> Result<f64, Failure> {
    session.rewind(depth);
    let options =
        GenerateOptions { max_tokens: 0, sampling: Sampling::greedy(), ..GenerateOptions::default() };
    Ok(session.generate(tokens, &options, &mut |_| ())?.prefill_s)
}

/// Seconds that `n` tokens one by one take after `before`, which is in the cache.
fn generate(session: &mut Session, before: &[u32], n: usize) -> Result<f64, Failure> {
    session.rewind(before.len());
    let options = GenerateOptions {
        max_tokens: n,
        sampling: Sampling::greedy(),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let tokens = [before, &[0]].concat();
    let outcome = session.generate(&tokens, &options, &mut |_| ())?;
    Ok(outcome.prefill_s + outcome.decode_s)
}
