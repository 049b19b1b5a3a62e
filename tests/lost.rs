//! Gates 40–42: a GPU that fails in the middle of a session. The CPU recomputes the lost state and continues;
//! no token is lost or repeated. A budget that does not suffice is an error, and the tokens are kept.

use dollop::Level;
use dollop::Precision;
use dollop::internal::GpuFault;
use dollop::sampler::Sampling;
use dollop::{
    BackendChoice, Engine, EngineOptions, Error, Event, GenerateOptions, Outcome, Session, SessionOptions,
};
use dollop_tests::{has_gpu, set, short_model, with_refinements};

fn on_gpu() -> EngineOptions {
    set!(EngineOptions {
        backend: BackendChoice::Gpu(None),
        threads: 2,
        context: Some(96),
        chunk: Some(CHUNK),
        ..EngineOptions::default()
    })
}

fn open(options: &EngineOptions) -> Engine {
    Engine::open(short_model(), options).unwrap()
}

/// Tokens of an answer, and tokens of a prompt that are computed at once.
const TOKENS: usize = 12;
const CHUNK: usize = 16;

/// A prompt whose answer has clear margins: the CPU, which rounds activations, gives the GPU's answer.
const PROMPT: &str = "The capital of France is Paris, a city on the river Seine. The capital of Italy is Rome. The capital of Spain is";

/// The moment at which the GPU fails.
#[derive(Clone, Copy, Debug)]
enum When {
    Never,
    /// After this many more submissions than opening took.
    Submissions(u64),
    /// Soon after this many tokens of the prompt have been computed.
    Prompt(usize),
    /// After this many tokens have been generated.
    Tokens(usize),
}

/// Generates greedily; returns the answer, the ids of the events, and the number of reports that the GPU was lost.
fn answer(engine: &Engine, session: &mut Session, when: When, fault: GpuFault) -> (Outcome, Vec<u32>, usize) {
    let options = set!(GenerateOptions {
        max_tokens: TOKENS,
        sampling: Sampling::greedy(),
        ignore_eos: true,
        ..GenerateOptions::default()
    });
    let prompt = engine.encode_text(PROMPT).unwrap();
    assert!(prompt.len() > CHUNK, "a prompt of more than a chunk");
    if let When::Submissions(n) = when {
        engine.lose_gpu(n, fault);
    }
    let (mut ids, mut moved) = (Vec::new(), 0);
    let outcome = session.generate(&prompt, &options, &mut |event| match event {
        Event::Token { id, .. } => {
            ids.push(id);
            if matches!(when, When::Tokens(n) if n == ids.len()) {
                engine.lose_gpu(0, fault);
            }
        }
        Event::Prefill { done, .. } if matches!(when, When::Prompt(n) if n == done) => {
            engine.lose_gpu(3, fault)
        }
        Event::GpuLost { note } => {
            assert!(note.contains("the GPU was lost (") && !note.contains('\n'), "{note}");
            moved += 1;
        }
        _ => {}
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.tokens, ids, "a token is lost or repeated");
    assert_eq!(ids.len(), TOKENS);
    assert_eq!(session.tokens(), [&prompt[..], &ids[..TOKENS - 1]].concat());
    (outcome, ids, moved)
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default().with_context(96).with_chunk(CHUNK)).unwrap()
}

/// The CPU's answer with these options.
fn on_cpu(options: &EngineOptions) -> Vec<u32> {
    let engine = open(&options.clone().with_backend(BackendChoice::Cpu));
    answer(&engine, &mut session(&engine), When::Never, GpuFault::Lost).1
}

/// Loses the GPU at several points of a session. Afterwards the CPU computes, also for a second session.
fn survives(options: &EngineOptions, want: Option<&[u32]>, points: &[(When, GpuFault)]) {
    for &(when, fault) in points {
        let engine = open(options);
        assert!(engine.gpu_stats().is_some());
        let (kv, mut first) = (engine.memory_plan().kv_bytes, session(&engine));
        let (_, ids, moved) = answer(&engine, &mut first, when, fault);
        let at = format!("{when:?}, {fault:?}");
        assert_eq!(moved, 1, "{at}: the GPU was not lost");
        let note = engine.note().unwrap_or_default();
        assert!(note.contains("computing on the CPU"), "{at}: {note}");
        assert_eq!(note.contains("not answered"), matches!(fault, GpuFault::Hung), "{at}: {note}");
        assert!(engine.gpu_stats().is_none() && engine.info().backend.starts_with("CPU"), "{at}");
        assert!(!engine.memory_plan().gpu && kv > 0);
        if let Some(want) = want {
            assert_eq!(ids, want, "{at}: another text than the CPU's");
        }
        drop(first);
        let (_, again, moved) = answer(&engine, &mut session(&engine), When::Never, fault);
        assert_eq!(moved, 0, "{at}: a session that never was on the GPU");
        if let Some(want) = want {
            assert_eq!(again, want, "{at}: the second session");
        }
    }
}

/// A budget that leaves a cache of about a third of all experts at the floor.
fn streamed(precision: Precision) -> EngineOptions {
    let mut o = on_gpu().with_precision(precision);
    let plan = |memory| Engine::plan(short_model(), &o.clone().with_memory(memory));
    let Err(Error::Budget { smallest, .. }) = plan(1) else { panic!("opened in one byte") };
    let bits = precision.floor().bits();
    let levels = plan(smallest).unwrap().levels;
    let experts = levels.iter().find(|l| l.bits == bits).unwrap().expert_bytes;
    let memory = smallest + experts / 3;
    assert!(plan(memory).unwrap().streaming);
    o.memory = Some(memory);
    o
}

#[test]
fn gate_40_a_session_goes_on_on_the_cpu_when_the_gpu_fails() {
    if !has_gpu() {
        return;
    }
    let options = on_gpu();
    let want = on_cpu(&options);
    let lost = GpuFault::Lost;
    let points = [
        (When::Tokens(9), lost),
        (When::Tokens(5), GpuFault::OutOfMemory),
        (When::Tokens(1), GpuFault::Invalid),
        (When::Tokens(3), GpuFault::Hung),
        // In the prompt: its first submission, and one after a chunk is done.
        (When::Submissions(0), lost),
    ];
    survives(&options, Some(&want), &points);
}

#[test]
fn gate_40_in_streaming_too() {
    if !has_gpu() {
        return;
    }
    let options = streamed(Precision::Exact(Level::B4));
    let want = on_cpu(&options);
    // A layer of a prompt's chunk takes several submissions: in the first chunk, in the second, and in an answer.
    let points = [When::Submissions(3), When::Prompt(CHUNK), When::Tokens(7)];
    survives(&options, Some(&want), &points.map(|when| (when, GpuFault::Lost)));
    let options = streamed(Precision::Adaptive { quality: 4.0, floor: Level::B2 });
    survives(&options, None, &[(When::Submissions(3), GpuFault::Lost)]);
    // The decisions of adaptive precision depend only on the tokens and on where the GPU was lost (R3).
    let again = || {
        let engine = open(&options);
        answer(&engine, &mut session(&engine), When::Tokens(7), GpuFault::Lost).1
    };
    assert_eq!(again(), again());
}

#[test]
fn gate_40_with_refined_experts_too() {
    if !has_gpu() {
        return;
    }
    let options = {
        let precision = Some(Precision::Adaptive { quality: 4.0, floor: Level::B2 });
        with_refinements(&short_model(), set!(EngineOptions { precision, ..on_gpu() }), 0.3)
    };
    // The CPU continues with the common level of all experts.
    let low =
        set!(EngineOptions { precision: Some(Precision::Exact(Level::B3)), memory: None, ..options.clone() });
    let low = on_cpu(&low);
    for (when, fault) in [
        (When::Submissions(0), GpuFault::Lost),
        (When::Tokens(6), GpuFault::Lost),
        (When::Tokens(9), GpuFault::OutOfMemory),
    ] {
        let engine = open(&options);
        let first_plan = engine.memory_plan().clone();
        assert!(first_plan.lowered && first_plan.refinements.is_some(), "{first_plan:?}");
        let mut first = session(&engine);
        let (_, ids, moved) = answer(&engine, &mut first, when, fault);
        let at = format!("{when:?}, {fault:?}");
        assert_eq!(moved, 1, "{at}: the GPU was not lost");
        if matches!(when, When::Submissions(_)) {
            assert_eq!(ids, low, "{at}: another text than the CPU's");
        }
        first.logits(&[7]).unwrap();
        drop(first);
        // Their planes and the staging memory are freed; nothing is read any more.
        let plan = engine.memory_plan();
        assert!(plan.refinements.is_none() && plan.lowered && !plan.gpu, "{at}: {plan:?}");
        assert_eq!(plan.expert_bytes, first_plan.expert_bytes);
        assert!(plan.total_bytes() <= plan.budget.unwrap(), "{at}: {plan:?}");
        let mode = &engine.info().mode;
        assert!(mode.ends_with("level 3 for all experts"), "{mode}");
        let stats = engine.stream_stats().unwrap();
        if !matches!(when, When::Submissions(_)) {
            assert!(stats.planes_wanted[0] > 0 && stats.bytes_wanted > 0, "{at}: {stats:?}");
        }
        let (_, again, moved) = answer(&engine, &mut session(&engine), When::Never, fault);
        assert_eq!((moved, &again), (0, &low), "{at}: the second session");
        assert_eq!(engine.stream_stats().unwrap(), stats, "{at}: somebody goes on refining");
    }
}

#[test]
fn gate_41_sessions_beside_it_move_as_well_and_logits_come_once() {
    if !has_gpu() {
        return;
    }
    let engine = open(&on_gpu());
    let ids: Vec<u32> = (0..40u32).map(|i| 1000 + 37 * i).collect();
    let mut sessions = [session(&engine), session(&engine)];
    for s in &mut sessions {
        s.best(&ids[..20], 1).unwrap();
    }
    // Between two rows of logits of one call.
    engine.lose_gpu(3, GpuFault::Lost);
    for s in &mut sessions {
        let mut heard = Vec::new();
        s.for_each_logits(&ids[20..], &mut |i, logits| {
            assert!(logits.iter().all(|x| x.is_finite()));
            heard.push(i);
        })
        .unwrap();
        assert_eq!(heard, (0..20).collect::<Vec<_>>());
        assert_eq!((s.tokens(), s.processed_tokens()), (&ids[..], 60));
    }
    assert!(engine.lost().is_some());
    let cpu = open(&on_gpu().with_backend(BackendChoice::Cpu));
    let mut whole = session(&cpu);
    whole.best(&ids, 1).unwrap();
    let want = whole.logits(&[7]).unwrap();
    for s in &mut sessions {
        assert!(s.logits(&[7]).unwrap() == want, "a timeline that was read again is another");
    }
}

#[test]
fn gate_42_what_the_budget_does_not_hold_is_refused_and_the_tokens_are_kept() {
    if !has_gpu() {
        return;
    }
    // All experts at the lowest level, to the byte. The threads that would continue need more scratch for
    // attention than the driver's share leaves.
    let adaptive = streamed(Precision::Adaptive { quality: 4.0, floor: Level::B2 });
    let mut o = adaptive.with_threads(1024).with_context(4096);
    let plan = |memory| Engine::plan(short_model(), &o.clone().with_memory(memory));
    let Err(Error::Budget { smallest, .. }) = plan(1) else { panic!("opened in one byte") };
    let small = plan(smallest).unwrap();
    let rest = small.total_bytes() - small.expert_bytes - small.staging_bytes;
    o.memory = Some(rest + small.levels.iter().find(|l| l.bits == 2).unwrap().expert_bytes);
    let engine = open(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids: Vec<u32> = (0..20u32).map(|i| 1000 + 37 * i).collect();
    session.best(&ids[..12], 1).unwrap();
    engine.lose_gpu(1, GpuFault::Lost);
    for _ in 0..2 {
        let error = session.logits(&ids[12..]).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Budget { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("the GPU was lost (") && text.contains("tokens are kept"), "{text}");
        assert_eq!(session.tokens(), &ids[..12]);
    }
    assert!(matches!(engine.session(SessionOptions::default()), Err(Error::Budget { .. })));
}
