//! `dollop bench`: tokens per second, like llama-bench.

use crate::args::BenchArgs;
use crate::note;
use crate::output::{bytes, count};
use crate::screen;
use crate::streaming::Mark;
use crate::{Failure, locate};
use dollop::convert::Purpose;
use dollop::sampler::Sampling;
use dollop::{Engine, GenerateOptions, GpuKernelTime, Session, SessionOptions};
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

#[derive(Serialize)]
struct Row {
    test: String,
    mean_tps: f64,
    sd_tps: f64,
    tps: Vec<f64>,
    /// Bytes of weights per second when decoding: the bytes that a token uses, times tokens per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_bytes_per_second: Option<f64>,
    /// Streaming statistics of the counted runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<serde_json::Value>,
    /// Bytes per second that the counted runs read from storage.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_bytes_per_second: Option<f64>,
    /// GPU kernel times in the counted runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kernels: Vec<GpuKernelTime>,
}

/// Bytes of the memory read test: larger than most CPU caches.
const READ_TEST: usize = 1 << 30;

/// Maximum bytes of the read test of storage.
const STORAGE_TEST: u64 = 1 << 30;

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    if args.repeat == 0 || args.prompt + args.generate == 0 {
        return Err("there is nothing to measure: -r and one of -p and -n must be above zero".into());
    }
    let context = args.engine.ctx.unwrap_or(args.depth + args.prompt.max(args.generate + 1));
    let mut options = args.engine.options();
    options.context = Some(context);
    options.gpu_clock = args.gpu_clock;
    let (engine, watch) = locate::open_with(args.model.as_deref(), &args.engine, options, Purpose::Weights)?;
    if args.gpu_clock && engine.gpu_stats().is_none() {
        return Err("--gpu-clock needs a GPU: add --backend gpu".into());
    }
    let info = engine.info();
    let mut session = engine.session(SessionOptions::default().with_context(context))?;
    // Tokens spread over the vocabulary, so that routing gets different inputs.
    let tokens: Vec<u32> = (0..(args.depth + args.prompt).max(1) as u64)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % info.vocab as u32)
        .collect();
    let before = &tokens[..args.depth];
    if !before.is_empty() {
        prompt(&mut session, 0, before)?;
    }
    let mut rows = Vec::new();
    for (name, n) in [("pp", args.prompt), ("tg", args.generate)] {
        if n > 0 {
            rows.push(measure(args, &engine, &mut session, &tokens, name, n)?);
        }
    }
    let decoded = rows.iter().any(|row| row.weight_bytes_per_second.is_some());
    // The read test allocates memory outside of the budget, and measures only the CPU.
    let ceiling = if decoded && !engine.memory_plan().streaming && engine.gpu_stats().is_none() {
        Some(engine.read_bandwidth(READ_TEST)?)
    } else {
        None
    };
    // Before the storage test, which changes heat and cache.
    watch.finish()?;
    let storage = engine.streamer().map(|s| s.read_bandwidth(STORAGE_TEST)).transpose()?.flatten();
    if args.json {
        let json = serde_json::json!({
            "model": info,
            "tests": rows,
            "read_bytes_per_second": ceiling,
            "storage_bytes_per_second": storage,
        });
        writeln!(screen::stdout(), "{}", screen::json(&json, false)?)?;
        return Ok(());
    }
    print(&engine, &rows, ceiling, storage)
}

/// Runs one test: `n` tokens of a prompt (`pp`) or of an answer (`tg`), after `args.depth` tokens of context.
fn measure(
    args: &BenchArgs,
    engine: &Engine,
    session: &mut Session,
    tokens: &[u32],
    name: &str,
    n: usize,
) -> Result<Row, Failure> {
    let mut tps = Vec::new();
    let mut mark = None;
    let mut kernels = Vec::new();
    // The first run warms the caches and is not counted.
    for run in 0..=args.repeat {
        if run == 1 {
            mark = Mark::now(engine);
            kernels = kernel_times(engine);
        }
        let seconds = if name == "pp" {
            prompt(session, args.depth, tokens)?
        } else {
            generate(session, &tokens[..args.depth], n, run)?
        };
        if run > 0 {
            tps.push(n as f64 / seconds);
        }
    }
    let mean = tps.iter().sum::<f64>() / tps.len() as f64;
    let variance = tps.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (tps.len() - 1).max(1) as f64;
    let test = if args.depth > 0 { format!("{name}{n} @ d{}", args.depth) } else { format!("{name}{n}") };
    let done = n * args.repeat;
    let stream = mark.as_ref().map(|mark| mark.json(engine, done));
    let storage_rate = mark.as_ref().map(|mark| mark.read_rate(engine));
    if let Some(mark) = mark.filter(|_| args.engine.stream.stats) {
        note!("{test}:\n{}", mark.report(engine, done));
    }
    let kernels = since(&kernels, kernel_times(engine));
    if args.gpu_clock && !args.json {
        report_kernels(&test, &kernels, done)?;
    }
    if let Some(note) = engine.lost() {
        let remedy = "run it again, or with --backend cpu";
        return Err(format!("{note}: figures of two processors are none; {remedy}").into());
    }
    Ok(Row {
        test,
        mean_tps: mean,
        sd_tps: variance.sqrt(),
        tps,
        weight_bytes_per_second: (name == "tg").then_some(mean * engine.info().active_bytes as f64),
        stream,
        storage_bytes_per_second: storage_rate,
        kernels,
    })
}

/// Prints the table, and the read rates relative to those of memory (`ceiling`) and of storage.
fn print(engine: &Engine, rows: &[Row], ceiling: Option<f64>, storage: Option<f64>) -> Result<(), Failure> {
    let info = engine.info();
    let mut out = screen::stdout();
    writeln!(out, "| model | size | params | active | backend | mode | test | t/s |")?;
    writeln!(out, "|---|---:|---:|---:|---|---|---|---:|")?;
    for row in rows {
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
    for row in rows {
        if let (Some(rate), Some(storage)) = (row.storage_bytes_per_second, storage) {
            writeln!(
                out,
                "\n{} reads {:.2} GB/s of experts, {:.0} % of the {:.2} GB/s that storage gives when nothing else is done",
                row.test,
                rate / 1e9,
                100.0 * rate / storage,
                storage / 1e9
            )?;
        }
    }
    Ok(())
}

fn kernel_times(engine: &Engine) -> Vec<GpuKernelTime> {
    engine.gpu_stats().map(|stats| stats.kernels).unwrap_or_default()
}

/// The difference of two snapshots of kernel times.
fn since(before: &[GpuKernelTime], now: Vec<GpuKernelTime>) -> Vec<GpuKernelTime> {
    let less = |mut k: GpuKernelTime| {
        let same = |b: &&GpuKernelTime| b.kernel == k.kernel && b.workgroups == k.workgroups;
        if let Some(b) = before.iter().find(same) {
            k.launches -= b.launches;
            k.nanoseconds -= b.nanoseconds;
        }
        (k.launches > 0).then_some(k)
    };
    let mut all: Vec<GpuKernelTime> = now.into_iter().filter_map(less).collect();
    all.sort_by_key(|k| std::cmp::Reverse(k.nanoseconds));
    all
}

fn report_kernels(test: &str, kernels: &[GpuKernelTime], tokens: usize) -> Result<(), Failure> {
    let mut out = screen::stdout();
    let all = kernels.iter().map(|k| k.nanoseconds).sum::<u64>() as f64;
    let per_token = 1e-3 * all / tokens as f64;
    writeln!(out, "{test}: {per_token:.1} µs of kernels per token\n")?;
    writeln!(out, "| kernel | workgroups | launches per token | µs each | % |")?;
    writeln!(out, "|---|---:|---:|---:|---:|")?;
    for k in kernels {
        writeln!(
            out,
            "| {} | {}x{} | {:.2} | {:.2} | {:.1} |",
            k.kernel,
            k.workgroups[0],
            k.workgroups[1],
            k.launches as f64 / tokens as f64,
            1e-3 * k.nanoseconds as f64 / k.launches as f64,
            100.0 * k.nanoseconds as f64 / all
        )?;
    }
    writeln!(out)?;
    Ok(())
}

/// Seconds to process the tokens after the first `depth`, which are already in the KV cache.
fn prompt(session: &mut Session, depth: usize, tokens: &[u32]) -> Result<f64, Failure> {
    session.rewind(depth);
    let options = GenerateOptions::default().with_max_tokens(0).with_sampling(Sampling::greedy());
    Ok(session.generate(tokens, &options, &mut |_| ())?.prefill_s)
}

/// Seconds to process `n` tokens, one by one, after `before`, which is already in the KV cache. The tokens
/// are spread over the vocabulary, and differ between runs: the text of a model with random weights soon
/// repeats, and so would its experts.
fn generate(session: &mut Session, before: &[u32], n: usize, run: usize) -> Result<f64, Failure> {
    session.rewind(before.len());
    let vocab = session.engine().info().vocab as u64;
    let start = Instant::now();
    for i in (0..n as u64).map(|i| i + (run * n) as u64) {
        let id = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % vocab;
        std::hint::black_box(session.best(&[id as u32], 1)?);
    }
    Ok(start.elapsed().as_secs_f64())
}
