//! `dollop eval`: logits of given tokens; perplexity, bits per byte and divergence on a text. For tasks, see
//! `tasks`.

use crate::args::EvalArgs;
use crate::note;
use crate::output::{read_text, write_file};
use crate::screen;
use crate::streaming::{Mark, Watch};
use crate::values::Kinds;
use crate::{Failure, locate, tasks};
use dollop::convert::Purpose;
use dollop::{Engine, EngineOptions};
use serde::Serialize;
use std::io::Write;

/// Tokens per window of a text.
const WINDOW: usize = 512;

pub fn eval(args: &EvalArgs) -> Result<(), Failure> {
    if let Some(Kinds(kinds)) = &args.tasks {
        return tasks::tasks(args, kinds);
    }
    let mut options = args.engine.options();
    options.context = options.context.or(args.text.as_ref().map(|_| WINDOW)).or(Some(args.tokens.len()));
    let (engine, watch) = open(args, options, Purpose::Weights)?;
    match (&args.text, &args.logits) {
        (Some(path), _) => text(args, &engine, &read_text(path)?),
        (None, Some(out)) => logits(args, &engine, out),
        (None, None) => unreachable!("clap asks for one of them"),
    }?;
    if let Some(note) = engine.lost() {
        note!("{note}");
    }
    watch.finish()
}

/// Opens the model to measure; with `--reference`, the source in f32.
pub fn open(args: &EvalArgs, options: EngineOptions, purpose: Purpose) -> Result<(Engine, Watch), Failure> {
    if !args.reference {
        return locate::open_with(args.model.as_deref(), &args.engine, options, purpose);
    }
    let model = args
        .model
        .as_deref()
        .ok_or("--reference needs the source model: a Hugging Face folder or a GGUF file")?;
    let engine = Engine::open_reference(model, &options)?;
    let watch = args.engine.stream.watch(&engine, &options)?;
    Ok((engine, watch))
}

fn logits(args: &EvalArgs, engine: &Engine, out: &std::path::Path) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Logits<'a> {
        tokens: &'a [u32],
        logits: Vec<Vec<f32>>,
    }
    let mut session = engine.session(args.engine.session(args.chunk))?;
    let logits = session.logits(&args.tokens)?;
    let json = serde_json::to_string(&Logits { tokens: &args.tokens, logits }).map_err(|e| e.to_string())?;
    if out.as_os_str() == "-" {
        writeln!(screen::stdout(), "{json}")?;
        return Ok(());
    }
    write_file(out, &(json + "\n"), &inputs(args))
}

/// The command's input files, which its results must not replace.
fn inputs(args: &EvalArgs) -> Vec<&std::path::Path> {
    [&args.model, &args.text, &args.against].into_iter().flatten().map(std::path::PathBuf::as_path).collect()
}

/// Opens the model of `--against` in memory: a foreign model unquantized, a Dollop file at its highest level.
fn reference(path: &std::path::Path, args: &EvalArgs) -> Result<Engine, Failure> {
    let mut plain =
        EngineOptions::default().with_backend(args.engine.backend).with_threads(args.engine.threads);
    plain.isa = args.engine.isa;
    plain.gpu_variants = args.engine.gpu_kernels;
    Ok(match dollop::inspect::kind(path)? {
        dollop::inspect::Kind::Dollop => Engine::open(path, &plain)?,
        _ => Engine::open_reference(path, &plain)?,
    })
}

/// Results on a text.
#[derive(Default, Serialize)]
struct Measured {
    tokens: usize,
    bytes: usize,
    perplexity: f64,
    bits_per_byte: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_mean: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top1_agreement: Option<f64>,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<serde_json::Value>,
}

fn text(args: &EvalArgs, engine: &Engine, text: &str) -> Result<(), Failure> {
    let tokenizer = engine.tokenizer()?;
    let ids = tokenizer.encode(text, false)?;
    let reference = args.against.as_deref().map(|path| reference(path, args)).transpose()?;
    let mark = Mark::now(engine);
    let window = args.engine.ctx.unwrap_or(WINDOW).min(engine.info().context);
    let options = args.engine.session(args.chunk).with_context(window);
    let mut session = engine.session(options)?;
    let mut other = reference.as_ref().map(|r| r.session(options)).transpose()?;
    let (mut nll, mut scored, mut bytes, mut agreed) = (0.0f64, 0usize, 0usize, 0usize);
    let mut divergences = Vec::new();
    for (n, window) in ids.chunks(window).enumerate() {
        let Some((_, targets)) = window.split_first().filter(|(_, t)| !t.is_empty()) else { continue };
        session.rewind(0);
        let mut ours = Vec::new();
        session.for_each_logits(&window[..targets.len()], &mut |i, logits| {
            let mut row = logits.to_vec();
            log_softmax(&mut row);
            nll -= f64::from(row[targets[i] as usize]);
            // Rows are kept only for a comparison, because each is as large as the vocabulary.
            if reference.is_some() {
                ours.push(row);
            }
        })?;
        if let Some(other) = &mut other {
            other.rewind(0);
            other.for_each_logits(&window[..targets.len()], &mut |i, logits| {
                let mut theirs = logits.to_vec();
                log_softmax(&mut theirs);
                let kl: f64 =
                    theirs.iter().zip(&ours[i]).map(|(p, q)| f64::from(p.exp()) * f64::from(p - q)).sum();
                divergences.push(kl.max(0.0));
                agreed += usize::from(dollop::sampler::argmax(&theirs) == dollop::sampler::argmax(&ours[i]));
            })?;
        }
        scored += targets.len();
        bytes += tokenizer.decode(window, false).len() - tokenizer.decode(&window[..1], false).len();
        if n % 8 == 7 {
            note!(
                "{} of {} tokens, bits per byte so far {:.4}",
                (n + 1) * window.len(),
                ids.len(),
                nll / bytes as f64 / std::f64::consts::LN_2
            );
        }
    }
    if scored == 0 {
        return Err("the text is too short: two tokens are the least that can be scored".into());
    }
    let mut m = Measured {
        tokens: scored,
        bytes,
        perplexity: (nll / scored as f64).exp(),
        bits_per_byte: nll / bytes as f64 / std::f64::consts::LN_2,
        mode: engine.info().mode.clone(),
        stream: mark.as_ref().map(|mark| mark.json(engine, scored)),
        ..Measured::default()
    };
    if !divergences.is_empty() {
        divergences.sort_by(f64::total_cmp);
        m.kl_mean = Some(divergences.iter().sum::<f64>() / divergences.len() as f64);
        m.kl_p99 = Some(divergences[(divergences.len() - 1) * 99 / 100]);
        m.top1_agreement = Some(agreed as f64 / divergences.len() as f64);
    }
    if args.json {
        writeln!(screen::stdout(), "{}", screen::json(&m, false)?)?;
        return Ok(());
    }
    print(&m)?;
    if let Some(mark) = mark {
        writeln!(screen::stdout(), "{}", mark.report(engine, scored))?;
    }
    Ok(())
}

fn print(m: &Measured) -> Result<(), Failure> {
    let mut out = screen::stdout();
    writeln!(out, "{}", m.mode)?;
    writeln!(out, "tokens         {}", m.tokens)?;
    writeln!(out, "perplexity     {:.4}", m.perplexity)?;
    writeln!(out, "bits per byte  {:.4}", m.bits_per_byte)?;
    if let (Some(mean), Some(p99), Some(top)) = (m.kl_mean, m.kl_p99, m.top1_agreement) {
        writeln!(out, "KL mean        {mean:.5}")?;
        writeln!(out, "KL 99%         {p99:.5}")?;
        writeln!(out, "top-1 agrees   {:.2} %", 100.0 * top)?;
    }
    Ok(())
}

fn log_softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = x.iter().map(|v| f64::from(v - max).exp()).sum();
    let shift = (f64::from(max) + sum.ln()) as f32;
    x.iter_mut().for_each(|v| *v -= shift);
}
