//! `dollop run`.

use crate::args::RunArgs;
use crate::note;
use crate::output::{Bar, Unit, peak_memory, read_text};
use crate::screen;
use crate::streaming::Mark;
use crate::{Failure, interrupt, locate};
use dollop::convert::Purpose;
use dollop::sampler::Sampling;
use dollop::{Event, GenerateOptions, Outcome, Overflow, StopReason};
use std::io::{IsTerminal, Write};

/// Refuses a limit of no tokens, which is a mistake.
pub fn something_to_say(max_tokens: usize) -> Result<(), Failure> {
    if max_tokens == 0 {
        let remedy =
            "ask for 1 token or more; `dollop eval` and `dollop bench -n 0` process text without answering";
        return Err(format!("-n 0: nothing would be generated; {remedy}").into());
    }
    Ok(())
}

pub fn run(args: &RunArgs) -> Result<(), Failure> {
    something_to_say(args.max_tokens)?;
    // Report typing errors before converting a model, which can take an hour.
    args.sampling.over(&Sampling::default())?;
    let constraint = args.form.constraint()?;
    let prompt = match (&args.prompt, &args.file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => unreachable!("clap asks for one of them"),
    };
    let purpose = if args.raw { Purpose::Weights } else { Purpose::Chat };
    let (engine, watch) = locate::open(args.model.as_deref(), &args.engine, purpose)?;
    let mut session = engine.session(args.engine.session(None))?;
    let (cancel, _guard) = interrupt::cancellable();
    let mut options = GenerateOptions::default()
        .with_max_tokens(args.max_tokens)
        .with_sampling(args.sampling.over(engine.sampling())?)
        .with_stop(&args.sampling.stop)
        .with_cancel(cancel);
    options.target_tps = args.engine.stream.target_tps;
    options.constraint = constraint;
    let mark = Mark::now(&engine);
    let mut stdout = screen::answers();
    let (mut broken, mut reasoning) = (None, screen::Reasoning::default());
    let mut bar = Some(Bar::new(Unit::Tokens));
    let mut show = |event: Event| {
        if let (Event::Prefill { done, total }, Some(bar)) = (&event, &mut bar) {
            return bar.show("reading the prompt", *done as u64, *total as u64);
        }
        // Remove the bar, because the next output is written in its place.
        bar = None;
        if let Event::GpuLost { note } = &event {
            gpu_lost(note);
        }
        if let (Event::Reasoning { text, .. }, false) = (&event, args.json) {
            reasoning.show(text);
        }
        let (Event::Token { text, .. } | Event::Rest { text }) = event else { return };
        if !args.json && broken.is_none() {
            reasoning.end();
            broken = write!(stdout, "{text}").and_then(|()| stdout.flush()).err();
            if broken.is_some() {
                options.cancel.cancel();
            }
        }
    };
    let outcome = if args.raw {
        let ids = engine.encode_text(&prompt)?;
        session.generate(&ids, &options, &mut show)?
    } else {
        let mut chat =
            locate::converse(session, args.system.clone(), Overflow::Error, args.model.as_deref())?;
        chat.send(&prompt, &options, &mut show)?
    };
    drop(bar);
    if let Some(e) = broken {
        return Err(e.into());
    }
    let tokens = outcome.prompt_tokens - outcome.reused_tokens + outcome.tokens.len();
    if args.json {
        let mut json = json(&engine, &outcome, &options.sampling)?;
        if let Some(mark) = &mark {
            json["stream"] = mark.json(&engine, tokens);
        }
        writeln!(stdout, "{}", screen::json(&json, false)?)?;
        return watch.finish();
    }
    writeln!(stdout)?;
    note!("{}", footer(&outcome, &options.sampling));
    if let Some(mark) = mark.filter(|_| args.engine.stream.stats) {
        note!("{}\n{}\n{}", engine.info().mode, options.sampling, mark.report(&engine, tokens));
    }
    watch.finish()
}

/// Reports in the middle of an answer, on a separate line, that the GPU was lost.
pub fn gpu_lost(note: &str) {
    let shared = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    note!("{}{note}", if shared { "\n" } else { "" });
}

fn json(
    engine: &dollop::Engine,
    outcome: &Outcome,
    sampling: &Sampling,
) -> Result<serde_json::Value, Failure> {
    let mut json = serde_json::to_value(outcome).map_err(|e| e.to_string())?;
    json["generated_tokens"] = outcome.tokens.len().into();
    json["prefill_tps"] = outcome.prefill_tps().into();
    json["decode_tps"] = outcome.decode_tps().into();
    json["seed"] = sampling.seed.into();
    // Convert through text, which keeps 0.7 as it is; a direct conversion gives the nearest f64 of an f32.
    let text = serde_json::to_string(sampling).map_err(|e| e.to_string())?;
    json["sampling"] = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    json["peak_memory_bytes"] = peak_memory().into();
    json["mode"] = engine.info().mode.clone().into();
    json["backend"] = engine.info().backend.clone().into();
    json["gpu_lost"] = engine.lost().into();
    json["gpu"] = serde_json::to_value(engine.gpu_stats()).map_err(|e| e.to_string())?;
    Ok(json)
}

/// One line about an answer, with the seed that reproduces it if sampling was random.
pub fn footer(o: &Outcome, sampling: &Sampling) -> String {
    let seed = if sampling.is_random() { format!(" | seed {}", sampling.seed) } else { String::new() };
    let why = match o.stop {
        StopReason::EndOfTurn => "",
        StopReason::StopString => ", stop string",
        StopReason::MaxTokens if o.text.is_empty() && !o.reasoning.is_empty() => {
            ", all of them reasoning: raise the token limit (-n)"
        }
        StopReason::MaxTokens => ", token limit (-n)",
        StopReason::Cancelled => ", cancelled",
        StopReason::ContextFull => ", context full",
    };
    format!(
        "[prompt {} tokens, {} from cache, {:.0} tok/s | answer {} tokens, {:.1} tok/s{why}{seed}]",
        o.prompt_tokens,
        o.reused_tokens,
        o.prefill_tps(),
        o.tokens.len(),
        o.decode_tps(),
    )
}
