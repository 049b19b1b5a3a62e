//! Gates 20–25, 28–30, 43, 49 and 52 to 55: the GPU backend. Logits agree with `transformers`; the default
//! model gives the CPU's answers; results depend neither on how tokens are split into calls nor on streaming;
//! a token has the expected launches.

use dollop::Level;
use dollop::Precision;
use dollop::sampler::Sampling;
use dollop::{
    BackendChoice, Chat, Engine, EngineOptions, Error, Event, GenerateOptions, GpuStats, Overflow, Session,
    SessionOptions,
};
use dollop_tests::tiny::{self, Tiny};
use dollop_tests::{chosen_among_all, full, has_gpu, set, short_model};
use std::path::{Path, PathBuf};

#[path = "gpu/ahead.rs"]
mod ahead;
#[path = "gpu/banks.rs"]
mod banks;
#[path = "gpu/greedy.rs"]
mod greedy;
#[path = "gpu/inputs.rs"]
mod inputs;
#[path = "gpu/once.rs"]
mod once;
#[path = "gpu/overlap.rs"]
mod overlap;
#[path = "gpu/refined.rs"]
mod refined;

const BOUND: f32 = 2e-3;

fn on_gpu() -> EngineOptions {
    EngineOptions::default().with_backend(BackendChoice::Gpu(None))
}

/// A model as a Dollop file, which exists as long as the returned folder.
fn file_of(tiny: &Tiny) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let path = folder.path().join("tiny.gguf");
    let convert = dollop::convert::convert;
    convert(folder.path(), &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    (folder, path)
}

#[test]
fn gate_20_every_family_and_variant_agrees_with_transformers() {
    if !has_gpu() {
        return;
    }
    let names = tiny::names();
    assert!(names.len() >= 32, "only {} goldens were found", names.len());
    let mut worst = 0.0f32;
    for (i, name) in names.iter().enumerate() {
        let tiny = Tiny::load(name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let engine = Engine::open_reference(folder.path(), &on_gpu()).unwrap();
        assert!(engine.info().backend.starts_with("GPU"), "{}", engine.info().backend);
        let mut whole = Vec::new();
        // Every model at once, and some of them also in short chunks or token by token: on software adapters,
        // launches for single tokens take long.
        let chunks =
            if full() { &[128, 7, 1][..] } else { [&[128, 7][..], &[128], &[128, 1], &[128]][i % 4] };
        for &chunk in chunks {
            let mut session = engine.session(SessionOptions::default().with_chunk(chunk)).unwrap();
            let got = session.logits(&tiny.tokens).unwrap();
            assert_eq!(got.len(), tiny.logits.len());
            for (position, (got, want)) in got.iter().zip(&tiny.logits).enumerate() {
                for (token, (g, w)) in got.iter().zip(want).enumerate() {
                    let difference = (g - w).abs();
                    let at = format!("{name}, chunks of {chunk}, position {position}, token {token}");
                    assert!(difference <= BOUND, "{at}: {g} instead of {w}");
                    worst = worst.max(difference);
                }
            }
            if chunk == 128 {
                whole = got;
            } else {
                assert_eq!(whole, got, "{name}: chunks of {chunk} change bits");
            }
        }
    }
    println!("{} goldens, largest difference {worst:e}", names.len());
}

/// The GPU reports a missing feature before anything is loaded, so that `auto` can fall back.
#[test]
fn gate_23_a_model_that_the_kernels_have_no_room_for_is_refused_by_what_it_has() {
    let mut tiny = Tiny::load("llama");
    tiny.config["head_dim"] = 516.into();
    for (name, shape, data) in &mut tiny.tensors {
        let side = if name.contains("o_proj") { 1 } else { 0 };
        if ["q_proj", "k_proj", "v_proj", "o_proj"].iter().any(|part| name.contains(part)) {
            shape[side] = shape[side] / 16 * 516;
            data.resize(shape.iter().product(), 0.01);
        }
    }
    let (_folder, path) = file_of(&tiny);
    assert!(Engine::open(&path, &EngineOptions::default()).is_ok());
    for error in
        [Engine::open(&path, &on_gpu()).err().unwrap(), Engine::plan(&path, &on_gpu()).err().unwrap()]
    {
        assert!(matches!(&error, Error::Device(what) if what.contains("516 values in a head")), "{error}");
    }
}

fn since(now: &GpuStats, then: &GpuStats) -> [u64; 4] {
    [
        now.dispatches - then.dispatches,
        now.submits - then.submits,
        now.readbacks - then.readbacks,
        now.uploaded_bytes - then.uploaded_bytes,
    ]
}

/// Memory, pipelines and bind groups created so far. A token must not change them.
fn kept(stats: &GpuStats) -> [u64; 3] {
    [stats.held_bytes, stats.pipelines, stats.bind_groups]
}

/// Launches of a token, which must be one submission and one read-back, and create no memory, pipeline or bind group.
fn launches(engine: &Engine) -> u64 {
    let (most, uploaded) = launches_and_uploads(engine);
    assert_eq!(uploaded, 0);
    most
}

/// The same, but weights may be uploaded.
fn launches_and_uploads(engine: &Engine) -> (u64, u64) {
    let mut session = engine.session(SessionOptions::default().with_context(32)).unwrap();
    let before = engine.gpu_stats().unwrap().ahead;
    session.logits(&[1, 2, 3]).unwrap();
    assert_eq!(engine.gpu_stats().unwrap().ahead, before, "a prompt says nothing of what comes next");
    session.logits(&[4]).unwrap();
    let (mut most, mut all_uploaded) = (0, 0);
    assert!(engine.gpu_stats().unwrap().bind_groups > 0);
    for token in [5, 6, 7] {
        let before = engine.gpu_stats().unwrap();
        session.logits(&[token]).unwrap();
        let after = engine.gpu_stats().unwrap();
        let [dispatches, submits, readbacks, uploaded] = since(&after, &before);
        assert_eq!((submits, readbacks), (1, 1));
        assert_eq!(
            after.ahead - before.ahead,
            1,
            "a token's commands are made while the one before is computed"
        );
        assert_eq!(kept(&before), kept(&after), "decoding allocates");
        most = most.max(dispatches);
        all_uploaded += uploaded;
    }
    (most, all_uploaded)
}

#[test]
fn gate_22_a_token_is_six_launches_a_layer_one_submission_and_one_read_back() {
    if !has_gpu() {
        return;
    }
    // Launches outside the layers: the embedding, a copy, and the head.
    const REST: u64 = 3;
    for name in ["olmoe", "mixtral", "qwen3moe", "llama"] {
        let folder = tempfile::tempdir().unwrap();
        Tiny::load(name).write_folder(folder.path());
        let engine = Engine::open_reference(folder.path(), &on_gpu()).unwrap();
        let (n, layers) = (launches(&engine), engine.info().layers as u64);
        assert_eq!(n, 6 * layers + REST, "{name}: {layers} layers");
        // A prompt's choices stay on the device as well: only logits are read back.
        let mut session = engine.session(SessionOptions::default().with_context(32)).unwrap();
        let before = engine.gpu_stats().unwrap();
        let rows = session.logits(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap().len() as u64;
        assert_eq!(since(&engine.gpu_stats().unwrap(), &before)[1..], [rows, rows, 0], "{name}");
        // With the last logits only, the last layer skips other positions' feed-forward. Results are the same.
        session.rewind(0);
        let last = session.logits(&[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap().pop().unwrap();
        session.rewind(0);
        let best = session.best(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 8).unwrap();
        assert!(best.iter().all(|&(id, logit)| last[id as usize] == logit), "{name}: {best:?}");
        // A prompt in several chunks: each begins while the next is recorded.
        let mut session = engine.session(SessionOptions::default().with_context(32).with_chunk(3)).unwrap();
        let before = engine.gpu_stats().unwrap();
        session.best(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 1).unwrap();
        assert_eq!(since(&engine.gpu_stats().unwrap(), &before)[1..], [3, 1, 0], "{name}");
    }
    // A shared expert takes two more launches.
    let engine = Engine::open(short_model(), &on_gpu()).unwrap();
    let (n, layers) = (launches(&engine), engine.info().layers as u64);
    assert_eq!(n, 8 * layers + REST);
}

#[test]
fn gate_23_what_cannot_be_had_is_an_error() {
    let missing = EngineOptions::default().with_backend(BackendChoice::Gpu(Some(1000)));
    let open = |o: &EngineOptions| Engine::open(Path::new(&short_model()), o);
    assert!(matches!(open(&missing), Err(Error::Device(_))));
    // A software adapter is no faster: by default the engine uses the CPU.
    let auto = EngineOptions::default().with_backend(BackendChoice::Auto);
    let engine = open(&auto).unwrap();
    let real = dollop::internal::kernels::gpu::adapters().iter().any(|a| !a.software && a.missing.is_none());
    assert_eq!((engine.gpu_stats().is_some(), engine.note().is_none()), (real, real));
}

/// A budget that leaves a cache of about `share` of all experts at the floor.
fn streaming(precision: Precision, share: f64) -> EngineOptions {
    let mut o =
        set!(EngineOptions { precision: Some(precision), context: Some(64), chunk: Some(32), ..on_gpu() });
    let plan = |memory| Engine::plan(short_model(), &o.clone().with_memory(memory));
    let Err(Error::Budget { smallest, .. }) = plan(1) else { panic!("opened in one byte") };
    let bits = precision.floor().bits();
    let levels = plan(smallest).unwrap().levels;
    let experts = levels.iter().find(|l| l.bits == bits).unwrap().expert_bytes as f64;
    let memory = smallest + (share * experts) as u64;
    assert!(plan(memory).unwrap().streaming);
    o.memory = Some(memory);
    o
}

/// All logits of all tokens.
fn outcome(session: &mut Session, ids: &[u32]) -> dollop::Result<Vec<f32>> {
    Ok(session.logits(ids)?.concat())
}

/// Random tokens, unlike normal text.
fn noise(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 4_000).collect()
}

/// Tokens of a prompt that is computed at once, and of the whole computation.
const PROMPT: usize = 12;
const TOKENS: usize = 16;

/// Logits of a prompt computed at once, then token by token.
fn outcomes(engine: &Engine) -> Vec<Vec<f32>> {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = noise(TOKENS as u32);
    let mut all = vec![outcome(&mut session, &ids[..PROMPT]).unwrap()];
    all.extend(ids[PROMPT..].chunks(1).map(|id| outcome(&mut session, id).unwrap()));
    all
}

#[test]
fn gate_24_streamed_is_resident_byte_for_byte_within_its_budget() {
    if !has_gpu() {
        return;
    }
    let exact = Precision::Exact(Level::B3);
    let whole = Engine::open(
        short_model(),
        &set!(EngineOptions { precision: Some(exact), context: Some(64), chunk: Some(32), ..on_gpu() }),
    );
    let whole = whole.unwrap();
    let want = outcomes(&whole);
    let adaptive = Precision::Adaptive { quality: 4.0, floor: Level::B2 };
    let mut adapted = Vec::new();
    for (precision, share) in [(exact, 0.3), (adaptive, 0.3), (adaptive, 0.3)] {
        let engine = Engine::open(short_model(), &streaming(precision, share)).unwrap();
        let got = outcomes(&engine);
        let (stats, gpu, plan) =
            (engine.stream_stats().unwrap(), engine.gpu_stats().unwrap(), engine.memory_plan());
        assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "{stats:?}");
        let planned = plan.dense_bytes + plan.kv_bytes + plan.scratch_bytes + plan.expert_bytes;
        assert!(gpu.held_bytes <= planned, "{} bytes on the device, {planned} planned", gpu.held_bytes);
        match precision {
            Precision::Exact(_) => assert!(got == want, "streaming changes bits"),
            Precision::Adaptive { .. } => adapted.push(got),
        }
    }
    assert!(adapted[0] == adapted[1], "the same input from the same state gives another output");
    // If only the last position is requested, the last layer needs only its experts.
    let wanted = |ask: &dyn Fn(&mut Session)| {
        let engine = Engine::open(short_model(), &streaming(exact, 0.3)).unwrap();
        ask(&mut engine.session(SessionOptions::default()).unwrap());
        engine.stream_stats().unwrap().planes_wanted[0]
    };
    let ids = noise(PROMPT as u32);
    let all = wanted(&|session| drop(session.logits(&ids).unwrap()));
    let last = wanted(&|session| drop(session.best(&ids, 1).unwrap()));
    assert!(last < all, "{last} experts for the last of {PROMPT} tokens, {all} for all");
}

#[test]
fn gate_25_adaptive_experts_whose_floor_fits_never_stop_for_the_router() {
    if !has_gpu() {
        return;
    }
    let adaptive = Precision::Adaptive { quality: 4.0, floor: Level::B2 };
    let mut o = streaming(adaptive, 0.3);
    let opened = |o: &EngineOptions| Engine::open(short_model(), o).unwrap();
    // Memory for one copy of all experts at 3 bits, but not for refinements.
    let small = Engine::plan(short_model(), &o).unwrap();
    let at = |bits: u8| small.levels.iter().find(|l| l.bits == bits).unwrap().expert_bytes;
    let rest = small.total_bytes() - small.expert_bytes - small.staging_bytes;
    o.memory = Some(rest + at(3) + 1000);
    let engine = opened(&o);
    let plan = engine.memory_plan();
    assert!(plan.lowered && !plan.streaming && plan.staging_bytes == 0 && plan.refinements.is_none());
    assert_eq!(plan.expert_bytes, at(3));
    assert!(plan.total_bytes() <= plan.budget.unwrap());
    assert!(engine.info().mode.contains("level 3"), "{}", engine.info().mode);
    // The counters: `launches` asserts one submission and read-back per token. A shared expert takes two of eight.
    let (n, layers) = (launches(&engine), engine.info().layers as u64);
    assert_eq!(n, 8 * layers + 3);
    let got = outcomes(&engine);
    let planned = plan.dense_bytes + plan.kv_bytes + plan.scratch_bytes + plan.expert_bytes;
    let held = engine.gpu_stats().unwrap().held_bytes;
    assert!(held > plan.expert_bytes && held <= planned, "{held} bytes on the device, {planned} planned");
    // The rest does not suffice for a second session.
    let _session = engine.session(SessionOptions::default()).unwrap();
    assert!(matches!(engine.session(SessionOptions::default()), Err(Error::Invalid(_))));

    let exact =
        set!(EngineOptions { precision: Some(Precision::Exact(Level::B3)), memory: None, ..o.clone() });
    assert!(got == outcomes(&opened(&exact)), "the level that fits is not that level");
    // One byte less than the lowest level takes: experts are streamed, and the router is read back.
    o.memory = Some(rest + at(2) - 1);
    assert!(Engine::plan(short_model(), &o).unwrap().streaming);
    o.memory = Some(rest + at(2));
    let lowest = Engine::plan(short_model(), &o).unwrap();
    assert!(lowest.lowered && lowest.expert_bytes == at(2));
    // The CPU, which never waits for a read-back, gives every expert the bits it is worth.
    o.backend = BackendChoice::Cpu;
    assert!(!Engine::plan(short_model(), &o).unwrap().lowered);
}

#[test]
fn gate_43_a_token_is_chosen_on_the_device_and_costs_eight_bytes_a_candidate() {
    if !has_gpu() {
        return;
    }
    let engine = Engine::open(short_model(), &on_gpu()).unwrap();
    let options = SessionOptions::default().with_context(64);
    let prompt = engine.encode_text("Once upon a time there was").unwrap();
    let seeded = Sampling::default().with_temperature(1.5).with_seed(7);
    let penalized = set!(Sampling { repeat_penalty: 1.3, ..Sampling::greedy() });
    let whole = 4 * engine.info().vocab as u64;
    for (sampling, bytes) in [(Sampling::greedy(), 8), (seeded, 8 * 40), (penalized, whole)] {
        let generate = set!(GenerateOptions {
            max_tokens: 5,
            sampling: sampling.clone(),
            ignore_eos: true,
            ..GenerateOptions::default()
        });
        let mut session = engine.session(options).unwrap();
        // Buffers grow to what a prompt, a token and this sampling need.
        session.generate(&prompt, &generate.clone().with_max_tokens(2), &mut |_| ()).unwrap();
        let mut before = engine.gpu_stats().unwrap();
        let mut tokens = 0;
        let outcome = session.generate(&prompt, &generate, &mut |event| {
            let Event::Token { .. } = event else { return };
            let after = engine.gpu_stats().unwrap();
            let [_, submits, readbacks, uploaded] = since(&after, &before);
            assert_eq!((submits, readbacks, uploaded), (1, 1, 0), "{sampling:?}");
            assert_eq!(after.read_bytes - before.read_bytes, bytes, "{sampling:?}");
            assert_eq!(kept(&after), kept(&before), "{sampling:?}");
            (before, tokens) = (after, tokens + 1);
        });
        assert_eq!(tokens, 5);
        let mut session = engine.session(options).unwrap();
        let want = chosen_among_all(&mut session, &prompt, &sampling, 5);
        assert_eq!(outcome.unwrap().tokens, want, "{sampling:?}");
    }
}

#[test]
fn two_threads_share_an_engine() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::load("qwen2moe");
    tiny.write_folder(folder.path());
    let engine = Engine::open_reference(folder.path(), &on_gpu()).unwrap();
    let all = |chunk: usize| {
        let mut session = engine.session(SessionOptions::default().with_chunk(chunk)).unwrap();
        session.logits(&tiny.tokens).unwrap()
    };
    let want = all(16);
    std::thread::scope(|scope| {
        let threads = [1, 5, 16].map(|chunk| {
            let all = &all;
            scope.spawn(move || all(chunk))
        });
        for thread in threads {
            assert!(thread.join().unwrap() == want, "another session's work shows");
        }
    });
    let held = engine.gpu_stats().unwrap().held_bytes;
    all(16);
    assert_eq!(engine.gpu_stats().unwrap().held_bytes, held, "a session leaves memory behind");
}
