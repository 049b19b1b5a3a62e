//! Gates 12–16: streaming. Streamed results are bit-identical to resident ones (R2), decisions repeat (R3),
//! an upgrade reads only the missing planes (R4), and storage faults are errors or retries, never wrong
//! tokens. Every gate asserts that its mechanism ran.

use dollop::Level;
use dollop::Precision;
use dollop::internal::Trace;
use dollop::internal::store::{Access, FileStorage, Reads};
use dollop::sampler::Sampling;
use dollop::{
    CancelToken, Engine, EngineOptions, Error, Event, GenerateOptions, MemoryPlan, SessionOptions,
    StopReason, StreamStats, StreamingOptions,
};
use dollop_tests::{HeldFile, default_model, set};
use std::path::Path;
use std::sync::Arc;

#[path = "streaming/choices.rs"]
mod choices;
#[path = "streaming/faults.rs"]
mod faults;

const CONTEXT: usize = 96;

/// A prompt and a continuation that use many experts: ids spread over the vocabulary.
fn tokens() -> Vec<u32> {
    (0..28u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 49_000).collect()
}

fn options(precision: Precision) -> EngineOptions {
    set!(EngineOptions {
        threads: 2,
        precision: Some(precision),
        context: Some(CONTEXT),
        chunk: Some(32),
        ..EngineOptions::default()
    })
}

/// A budget that fits about `share` of the experts at the precision's floor.
fn with_share(mut o: EngineOptions, share: f64) -> EngineOptions {
    let base = o.clone();
    let plan = |memory| Engine::plan(default_model(), &base.clone().with_memory(memory));
    let least = match plan(1) {
        Err(Error::Budget { smallest, .. }) => smallest,
        other => panic!("a budget of one byte: {other:?}"),
    };
    let fixed: MemoryPlan = plan(least).unwrap();
    let bits = o.precision.unwrap().floor().bits();
    let experts = fixed.levels.iter().find(|l| l.bits == bits).unwrap().expert_bytes as f64;
    o.memory = Some(least + (share * experts) as u64);
    assert!(plan(o.memory.unwrap()).unwrap().streaming);
    o
}

fn open(o: &EngineOptions) -> Engine {
    Engine::open(default_model(), o).unwrap()
}

/// An engine whose reads can be held back.
fn open_held(o: &EngineOptions) -> (Engine, Arc<HeldFile>) {
    let file = HeldFile::open(&default_model());
    let streaming = set!(StreamingOptions { storage: Some(file.clone()), ..o.streaming.clone() });
    (open(&set!(EngineOptions { streaming, ..o.clone() })), file)
}

/// Logits of a prompt in chunks, then token by token.
fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    let mut all = session.logits(&ids[..20]).unwrap();
    ids[20..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

/// Reads through io_uring, if the system supports it.
fn ring() -> Reads {
    let probe = FileStorage::open_measured(&default_model(), &[(0, 4096)], 1, None, Reads::Ring);
    if probe.is_ok() {
        return Reads::Ring;
    }
    println!("no io_uring here: gates ran with threads alone");
    Reads::Threads
}

fn stats(engine: &Engine) -> StreamStats {
    engine.stream_stats().expect("this engine streams")
}

#[test]
fn gate_12_streamed_is_resident_byte_for_byte() {
    for level in [Level::B3, Level::B4] {
        let exact = options(Precision::Exact(level));
        let resident = open(&exact);
        assert!(resident.stream_stats().is_none() && !resident.memory_plan().streaming);
        let want = logits(&resident);
        let variants: [(&str, f64, fn(&mut EngineOptions)); 9] = [
            ("most of it", 0.8, |_| ()),
            ("half", 0.5, |_| ()),
            ("one expert a layer", 0.0, |_| ()),
            ("one lane", 0.3, |o| o.streaming.lanes = Some(1)),
            ("two threads", 0.3, |o| (o.streaming.lanes, o.streaming.reads) = (Some(2), Reads::Threads)),
            ("four lanes of the system's", 0.3, |o| {
                (o.streaming.lanes, o.streaming.reads) = (Some(4), ring())
            }),
            ("no overlap", 0.3, |o| o.streaming.overlap = false),
            ("lookahead", 0.5, |o| o.routing.lookahead = 2),
            ("one thread, short memory", 0.3, |o| (o.threads, o.streaming.half_life) = (1, 1.0)),
        ];
        for (name, share, change) in variants {
            let mut o = with_share(exact.clone(), share);
            change(&mut o);
            let engine = open(&o);
            assert!(logits(&engine) == want, "{name}: logits differ at level {level}");
            let (ring, reads) = (engine.streamer().unwrap().access() == Access::Ring, o.streaming.reads);
            assert!(reads == Reads::Measured || ring == (reads == Reads::Ring), "{name}");
            let s = stats(&engine);
            assert!(s.bytes_wanted > 0 && s.evictions > 0 && s.upgrades > 0, "{name}: {s:?}");
            assert!((s.mean_bits() - f64::from(level.bits())).abs() < 1e-6, "{name}: {s:?}");
            assert_eq!(s.bytes_ahead > 0, o.routing.lookahead > 0, "{name}: {s:?}");
            assert!(share < 0.2 || s.planes_hit[0] > 0, "{name}: nothing was ever found: {s:?}");
        }
    }
}

#[test]
fn a_prompt_serves_the_last_layer_only_where_logits_are_wanted() {
    let o = set!(EngineOptions { chunk: Some(16), ..with_share(options(Precision::Exact(Level::B4)), 0.3) });
    let ids: Vec<u32> = tokens().into_iter().cycle().take(48).collect();
    let served = |all: bool| {
        let engine = open(&o);
        let mut session = engine.session(SessionOptions::default()).unwrap();
        if all {
            drop(session.logits(&ids).unwrap())
        } else {
            drop(session.best(&ids, 1).unwrap())
        }
        (stats(&engine).servings, engine.info().layers as u64)
    };
    let (all, layers) = served(true);
    assert_eq!(all, 3 * layers, "three chunks");
    assert_eq!(served(false).0, all - 2, "not of the first two");
}

#[test]
fn a_prompt_is_cancelled_between_layers_and_the_session_goes_on() {
    let greedy = |cancel: &CancelToken| {
        set!(GenerateOptions {
            max_tokens: 8,
            sampling: Sampling::greedy(),
            ignore_eos: true,
            cancel: cancel.clone(),
            ..GenerateOptions::default()
        })
    };
    let ids = tokens();
    let exact = options(Precision::Exact(Level::B4));
    let mut resident = open(&exact).session(SessionOptions::default()).unwrap();
    let want = resident.generate(&ids, &greedy(&CancelToken::new()), &mut |_| ()).unwrap().tokens;
    for lookahead in [0, 2] {
        let mut o = with_share(exact.clone(), 0.3);
        o.routing.lookahead = lookahead;
        let engine = open(&o);
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let (cancel, mut seen) = (CancelToken::new(), Vec::new());
        let outcome = session.generate(&ids, &greedy(&cancel), &mut |event| {
            let Event::Prefill { done, total } = event else { panic!("{event:?}") };
            seen.push((done, total));
            if done > total / 3 {
                cancel.cancel();
            }
        });
        let outcome = outcome.unwrap();
        assert_eq!(
            (outcome.stop, outcome.tokens.len(), session.tokens().len()),
            (StopReason::Cancelled, 0, 0)
        );
        assert!(seen.len() > 1 && seen.is_sorted() && seen.iter().all(|&(done, total)| done < total));
        let (served, layers) = (stats(&engine).servings, engine.info().layers as u64);
        assert!(served < layers / 2, "{served} of {layers} layers were computed");
        let again = session.generate(&ids, &greedy(&CancelToken::new()), &mut |_| ()).unwrap();
        assert_eq!(again.tokens, want, "with lookahead {lookahead}");
        assert!(lookahead == 0 || stats(&engine).bytes_ahead > 0);
    }
}

#[test]
fn what_is_used_next_is_read_while_a_token_waits_for_its_experts() {
    let mut o = with_share(options(Precision::Exact(Level::B4)), 0.3);
    let trace = Arc::new(Trace::default());
    o.streaming.trace = Some(trace.clone());
    let (engine, file) = open_held(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    // The products of a prompt do not wait for memory.
    session.logits(&ids[..20]).unwrap();
    let read = || trace.to_json().contains("weights used next");
    assert!(!read());
    let waits = || engine.streamer().unwrap().waits();
    let mut waited = false;
    file.late(&waits, || drop(session.logits(&ids[20..21]).unwrap()), || waited = true);
    assert!(waited && trace.to_json().contains("waiting for reads"), "nothing was held back");
    // If the system does not report its cache sizes, nothing is read.
    let told = |i: usize| Path::new(&format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).exists();
    assert_eq!(read(), (0..5).any(told));
    assert!(stats(&engine).wait_ns > 0);
}

#[test]
fn gate_13_adaptive_decisions_repeat_and_refinements_are_bought() {
    let adaptive = Precision::Adaptive { quality: 3.2, floor: Level::B2 };
    for (share, lookahead) in [(1.1, 0), (0.9, 8)] {
        let mut o = with_share(options(adaptive), share);
        o.routing.lookahead = lookahead;
        let first = open(&o);
        let want = logits(&first);
        let s = stats(&first);
        assert!(s.mean_bits() > 2.05 && s.mean_bits() < 4.0 && s.downgrades > 0 && s.upgrades > 0, "{s:?}");
        assert!(s.bytes_moved > 0, "slabs of several sizes never had to be slid together: {s:?}");
        for (lanes, overlap, reads) in [(1, true, Reads::Threads), (4, false, ring())] {
            (o.streaming.lanes, o.streaming.overlap, o.streaming.reads) = (Some(lanes), overlap, reads);
            let again = open(&o);
            assert!(logits(&again) == want, "{lanes} lanes changed an adaptive result");
            assert_eq!(stats(&again).decisions, s.decisions);
        }
    }
}

#[test]
fn gate_14_an_upgrade_reads_the_missing_planes_alone() {
    // Everything fits at 4 bits; the first run needs 2, the second 4.
    let model = default_model();
    let adaptive = |quality| Precision::Adaptive { quality, floor: Level::B2 };
    let mut o = options(adaptive(2.0));
    let whole = Engine::plan(&model, &set!(EngineOptions { memory: None, ..o.clone() })).unwrap();
    // One byte less than everything: streaming, with room for almost everything.
    o.memory = Some(whole.total_bytes() - 1);
    let engine = open(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    session.logits(&ids[..1]).unwrap();
    let low = stats(&engine);
    assert!(low.planes_wanted[1] == 0 && low.upgrades == 0, "{low:?}");
    engine.streamer().unwrap().set_quality(8.0);
    session.rewind(0);
    session.logits(&ids[..1]).unwrap();
    let high = stats(&engine).since(&low);
    assert!(high.planes_hit[0] > 0 && high.upgrades > 0, "{high:?}");
    // The bases of the first layer's experts were resident; it read planes 1 and 2.
    let plan = engine.memory_plan();
    let bytes = |bits: u8| plan.levels.iter().find(|l| l.bits == bits).unwrap().touched_bytes;
    let experts = engine.info().experts_used * engine.info().layers;
    let one = |bits| bytes(bits) / experts as u64;
    let bases = high.planes_wanted[0] - high.planes_hit[0];
    let read = bases * one(2)
        + (high.planes_wanted[1] - high.planes_hit[1]) * (one(3) - one(2))
        + (high.planes_wanted[2] - high.planes_hit[2]) * (one(4) - one(3));
    assert_eq!(high.bytes_wanted, read);
    assert!(bases < high.planes_wanted[0] / 2, "{high:?}");
}

#[test]
fn a_warm_start_loads_what_was_hot() {
    let o = with_share(options(Precision::Exact(Level::B4)), 0.5);
    let engine = open(&o);
    let want = logits(&engine);
    let heat = engine.streamer().unwrap().heat();
    let cold = stats(&open(&o));
    assert_eq!(cold.bytes_ahead, 0);
    let warm = open(&o);
    warm.warm_start(&heat).unwrap();
    assert!(stats(&warm).bytes_ahead > 0);
    assert!(logits(&warm) == want);
    assert!(stats(&warm).bytes_wanted < stats(&engine).bytes_wanted);
    assert!(warm.warm_start(&heat[1..]).is_err(), "another model's heat");
}
