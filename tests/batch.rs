//! Gates 145 to 147: generations in a batch equal those that run alone, byte for byte, and read less.

use dollop::internal::{Batch, BatchStats};
use dollop::sampler::Sampling;
use dollop::{
    CancelToken, Engine, EngineOptions, Event, GenerateOptions, Level, Outcome, Precision, Session,
    SessionOptions, StopReason, StreamingOptions,
};
use dollop_tests::chance::Chance;
use dollop_tests::tiny::Tiny;
use dollop_tests::{HeldFile, default_model, set, test_model, with_budget};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// Positions of a session: the longest prompt and answer.
const CONTEXT: usize = 112;

/// All requests begin before this step.
const BEGIN: usize = 5;

/// A request of a mix.
#[derive(Clone)]
struct Ask {
    prompt: Vec<u32>,
    options: GenerateOptions,
    /// The step before which it starts.
    at: usize,
    /// Tokens after which its client disconnects.
    hangs_up: Option<usize>,
}

fn mix(chance: &mut Chance, vocab: usize, n: usize) -> Vec<Ask> {
    let ask = |_| {
        let len = chance.pick(&[1, 2, 7, 15, 16, 17, 40, 80]);
        let prompt = (0..len).map(|_| chance.below(vocab) as u32).collect();
        let sampling = match chance.below(3) {
            0 => Sampling::default().with_temperature(0.0),
            _ => Sampling::default().with_temperature(1.0).with_seed(chance.below(1000) as u64),
        };
        let options = set!(GenerateOptions {
            max_tokens: chance.pick(&[0, 1, 10, 20, 24, 28]),
            sampling: sampling,
            ignore_eos: true,
            ..GenerateOptions::default()
        });
        let hangs_up = chance.one_in(5).then(|| 1 + chance.below(8));
        Ask { prompt, options, at: chance.below(BEGIN), hangs_up }
    };
    (0..n).map(ask).collect()
}

/// The outcome of a request: its answer, and everything that its session keeps.
#[derive(PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    stop: StopReason,
    kept: Vec<u8>,
}

fn answer(session: &Session, outcome: Outcome) -> Answer {
    let mut kept = Vec::new();
    session.write_to(&mut kept).unwrap();
    Answer { tokens: outcome.tokens, text: outcome.text, stop: outcome.stop, kept }
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default().with_context(CONTEXT).with_chunk(32)).unwrap()
}

fn hears(said: &mut usize, hangs_up: Option<usize>, event: &Event) -> ControlFlow<()> {
    *said += usize::from(matches!(event, Event::Token { .. } | Event::Reasoning { .. }));
    if hangs_up.is_some_and(|n| *said >= n) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn alone(engine: &Engine, ask: &Ask) -> Answer {
    let (mut session, mut said) = (session(engine), 0);
    let outcome = session
        .generate(&ask.prompt, &ask.options, &mut |event| hears(&mut said, ask.hangs_up, &event))
        .unwrap();
    answer(&session, outcome)
}

/// The outcome of a mix, and whether an answer continued while a chunk of a prompt was computed.
struct Mixed {
    answers: Vec<Answer>,
    stats: BatchStats,
    between: bool,
}

fn together(engine: &Engine, asks: &[Ask], stall: Duration) -> Mixed {
    let mut batch = Batch::new(engine).with_stall(stall);
    let mut answers: Vec<Option<Answer>> = asks.iter().map(|_| None).collect();
    let (mut step, mut between) = (0, false);
    while step < BEGIN || !batch.is_empty() {
        for (i, ask) in asks.iter().enumerate().filter(|(_, ask)| ask.at == step) {
            batch.begin((i, 0), session(engine), &ask.prompt, &ask.options);
        }
        let mut said = vec![0; asks.len()];
        let ended = batch.step(&mut |(i, all): &mut (usize, usize), event| {
            said[*i] += usize::from(matches!(event, Event::Token { .. } | Event::Reasoning { .. }));
            hears(all, asks[*i].hangs_up, &event)
        });
        between |= said.iter().any(|&n| n > 1);
        for one in ended {
            answers[one.tag.0] = Some(answer(&one.session, one.outcome.unwrap()));
        }
        step += 1;
    }
    let answers = answers.into_iter().map(Option::unwrap).collect();
    Mixed { answers, stats: batch.stats(), between }
}

/// Compares a mix with each of its requests alone; returns how many disconnected, and the most in one step.
///
/// Without a stall time, answers continue between all layers of a prompt; with a long one they share steps.
fn same(engine: &Engine, seed: u64, name: &str, stall: Duration) -> [usize; 2] {
    let asks = mix(&mut Chance(seed), engine.info().vocab, 14);
    let Mixed { answers, stats, between } = together(engine, &asks, stall);
    for (i, (ask, got)) in asks.iter().zip(&answers).enumerate() {
        let want = alone(engine, ask);
        let of = format!("{name}, request {i}: {} tokens and {}", ask.prompt.len(), ask.options.max_tokens);
        assert_eq!((&got.tokens, got.stop), (&want.tokens, want.stop), "{of}");
        assert!(*got == want, "{of}: what the session keeps");
    }
    assert!(
        stats.most > 1 && stats.tokens > stats.steps + 10 && between == stall.is_zero(),
        "{name}: {stats:?}"
    );
    [answers.iter().filter(|of| of.stop == StopReason::Cancelled).count(), stats.most]
}

fn exact() -> EngineOptions {
    EngineOptions::default().with_threads(2).with_precision(Precision::Exact(Level::B4))
}

/// Memory for the sessions of a mix, and a part of the experts.
fn streamed(path: &Path) -> Engine {
    let resident = Engine::open(path, &exact()).unwrap();
    let of = |engine: &Engine, context: usize| {
        let plan = engine.memory_plan();
        (plan.kv_bytes + plan.scratch_bytes) * (context / CONTEXT) as u64
    };
    let more = of(&resident, 20 * CONTEXT);
    let options =
        set!(EngineOptions { context: Some(resident.memory_plan().context), chunk: Some(512), ..exact() });
    Engine::open(path, &with_budget(path, options, more / 1000)).unwrap()
}

/// Gate 145: requests of a mix that begin, end and disconnect at any time get the same results as each alone:
/// the tokens, and every byte that their sessions keep; resident and streamed.
#[test]
fn answers_together_are_those_alone() {
    let folder = tempfile::tempdir().unwrap();
    // With the seeds of their mixes.
    let names = [
        ("olmoe-clip", 7),
        ("lfm2moe", 8),
        ("qwen35moe", 9),
        ("qwen3next", 10),
        ("deepseek2-v3", 11),
        ("gemma3-rhythm", 12),
        ("gemma4-inputs", 13),
        ("gptoss", 14),
        ("mixtral-window", 15),
        ("kimi-linear", 11),
        ("bailingmoe3", 12),
        ("granitehybrid", 13),
        ("nemotronh", 14),
    ];
    let mut seen = Vec::new();
    for (name, seed) in names {
        let source = folder.path().join(name);
        std::fs::create_dir(&source).unwrap();
        Tiny::load(name).write_folder(&source);
        let path = folder.path().join(format!("{name}.gguf"));
        let options = dollop::convert::ConvertOptions::default();
        dollop::convert::convert(&source, &path, &options, &CancelToken::new(), &mut |_| ()).unwrap();
        seen.push(same(&Engine::open(&path, &exact()).unwrap(), seed, name, Duration::ZERO));
    }
    let path = test_model();
    seen.push(same(&Engine::open(&path, &exact()).unwrap(), 1, "resident", Duration::MAX));
    let engine = streamed(&path);
    seen.push(same(&engine, 2, "streamed", Duration::MAX));
    let gone: usize = seen.iter().map(|of| of[0]).sum();
    assert!(gone > 5 && seen.iter().any(|of| of[1] > 2), "{seen:?}");
    let stats = engine.stream_stats().unwrap();
    assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "{stats:?}");
}

/// Gate 146: the bytes read per token decrease with the number of answers in a batch.
#[test]
fn a_read_serves_all() {
    // Few layers share less.
    let path = default_model();
    let read = |n: usize| {
        let engine = streamed(&path);
        let mut batch = Batch::new(&engine).with_stall(Duration::MAX);
        for i in 0..n {
            let options = set!(GenerateOptions {
                max_tokens: 12,
                sampling: Sampling::default().with_temperature(1.0).with_seed(i as u64),
                ignore_eos: true,
                ..GenerateOptions::default()
            });
            batch.begin(i, session(&engine), &[11, 500, 3000 + i as u32], &options);
        }
        // Prompts are computed, and the first tokens.
        (0..n + 1).for_each(|_| assert!(batch.step(&mut |_, _| ()).is_empty()));
        let (before, so_far) = (engine.stream_stats().unwrap().bytes_wanted, batch.stats());
        let mut ended = 0;
        while !batch.is_empty() {
            ended += batch.step(&mut |_, _| ()).len();
        }
        let (after, stats) = (engine.stream_stats().unwrap().bytes_wanted, batch.stats());
        assert!(ended == n && stats.most == n, "{stats:?}");
        (after - before) as f64 / (stats.tokens - so_far.tokens) as f64
    };
    let (one, eight) = (read(1), read(8));
    println!("bytes read per token: {one:.0} alone, {eight:.0} with seven others");
    assert!(one > 0.0 && eight < 0.5 * one, "{one} and {eight} bytes a token");
}

/// Gate 147: a failure affects only what fails. An invalid request beside valid ones fails alone, and a
/// temporary storage failure ends the running generations, but not later ones.
#[test]
fn what_fails_fails_alone() {
    let file = HeldFile::open(&test_model());
    let options = with_budget(
        &test_model(),
        set!(EngineOptions { context: Some(4096), chunk: Some(512), ..exact() }),
        1 << 20,
    );
    let options = set!(EngineOptions {
        streaming: set!(StreamingOptions { storage: Some(file.clone()), ..options.streaming.clone() }),
        ..options.clone()
    });
    let engine = Engine::open(test_model(), &options).unwrap();
    let mut asks = mix(&mut Chance(5), engine.info().vocab, 6);
    asks.iter_mut().for_each(|ask| (ask.at, ask.hangs_up, ask.options.max_tokens) = (0, None, 12));
    let want: Vec<Answer> = asks.iter().map(|ask| alone(&engine, ask)).collect();
    let mut batch = Batch::new(&engine).with_stall(Duration::MAX);
    for (i, ask) in asks.iter().enumerate() {
        batch.begin(i, session(&engine), &ask.prompt, &ask.options);
    }
    batch.begin(77, session(&engine), &[], &GenerateOptions::default());
    batch.begin(78, session(&engine), &[u32::MAX], &GenerateOptions::default());
    let (mut bad, mut good) = (0, 0);
    while !batch.is_empty() {
        for one in batch.step(&mut |_, _| ()) {
            match one.outcome {
                Ok(outcome) => {
                    assert!(answer(&one.session, outcome) == want[one.tag], "request {}", one.tag);
                    good += 1;
                }
                Err(e) => {
                    assert!(one.tag > 76, "request {}: {e}", one.tag);
                    bad += 1;
                }
            }
        }
    }
    assert_eq!((good, bad), (6, 2));
    for (i, ask) in asks.iter().enumerate() {
        batch.begin(i, session(&engine), &ask.prompt, &ask.options);
    }
    (0..8).for_each(|_| assert!(batch.step(&mut |_, _| ()).is_empty()));
    file.fail(true);
    let mut sessions = Vec::new();
    while !batch.is_empty() {
        for one in batch.step(&mut |_, _| ()) {
            assert!(one.outcome.is_err(), "request {} needs experts", one.tag);
            sessions.push((one.tag, one.session));
        }
    }
    file.fail(false);
    for (i, session) in sessions {
        batch.begin(i, session, &asks[i].prompt, &asks[i].options);
    }
    while !batch.is_empty() {
        for one in batch.step(&mut |_, _| ()) {
            assert_eq!(one.outcome.unwrap().tokens, want[one.tag].tokens, "request {}", one.tag);
            good += 1;
        }
    }
    assert_eq!(good, 12);
}
