//! Gate 72: memory is given back and taken again while tokens are computed, from any thread. At exact
//! precision no result changes, at adaptive precision generation continues. Impossible requests are refused
//! with the smallest number that works, and change nothing.

use dollop::Level;
use dollop::Precision;
use dollop::sampler::Sampling;
use dollop::{
    BackendChoice, Engine, EngineOptions, Error, GenerateOptions, SessionOptions, StreamStats,
    StreamingOptions, TrimLevel,
};
use dollop_tests::{default_model, has_gpu, set, short_model, with_budget};
use std::sync::atomic::{AtomicBool, Ordering};

const LEVELS: [TrimLevel; 4] =
    [TrimLevel::Normal, TrimLevel::Moderate, TrimLevel::Critical, TrimLevel::Complete];

fn options(precision: Precision) -> EngineOptions {
    set!(EngineOptions {
        threads: 2,
        precision: Some(precision),
        context: Some(96),
        chunk: Some(32),
        ..EngineOptions::default()
    })
}

fn exact() -> EngineOptions {
    options(Precision::Exact(Level::B4))
}

fn open(o: &EngineOptions) -> Engine {
    Engine::open(default_model(), o).unwrap()
}

fn stats(engine: &Engine) -> StreamStats {
    engine.stream_stats().expect("this engine streams")
}

/// The answer to a fixed prompt.
fn say(engine: &Engine, n: usize) -> Vec<u32> {
    let prompt: Vec<u32> = (0..40u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 49_000).collect();
    let o = set!(GenerateOptions {
        max_tokens: n,
        sampling: Sampling::greedy(),
        ignore_eos: true,
        ..GenerateOptions::default()
    });
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.generate(&prompt, &o, &mut |_| ()).unwrap().tokens
}

/// Runs `run` repeatedly while another thread resizes at random, once between two layers, until `times`
/// resizes are done. Returns the number of runs.
fn while_resized(engine: &Engine, most: u64, times: u64, run: &dyn Fn()) -> usize {
    let plan = engine.memory_plan();
    let least = match engine.set_memory(1) {
        Err(Error::Budget { smallest, .. }) => smallest,
        other => panic!("a budget of one byte: {other:?}"),
    };
    assert_eq!(engine.memory_plan(), plan, "a refused budget changes nothing");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, one) = (&stop, engine.clone());
        let resizer = scope.spawn(move || {
            let mut state = 7u64;
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let random = (state >> 33) as usize;
                let served = || stats(&one).servings;
                let before = served();
                while served() == before && !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                if random.is_multiple_of(3) {
                    one.trim(LEVELS[random / 3 % 4]).unwrap();
                } else {
                    let bytes = least + (most - least) * (random / 3 % 1000) as u64 / 999;
                    one.set_memory(bytes).unwrap();
                    // The plan stays valid as long as no other thread resizes, and only this thread does.
                    let plan = one.memory_plan();
                    assert!(plan.total_bytes() <= bytes && plan.budget == Some(bytes));
                }
            }
        });
        let mut runs = 0;
        while stats(engine).resizes < times || runs == 0 {
            run();
            runs += 1;
        }
        stop.store(true, Ordering::Relaxed);
        resizer.join().unwrap();
        runs
    })
}

#[test]
fn gate_72_a_thousand_resizes_change_no_word() {
    let want = say(&open(&exact()), 24);
    // Prefetches are in flight between two layers.
    let mut o = exact();
    o.routing.lookahead = 2;
    let tight = with_budget(&default_model(), o, 8 << 20);
    let engine = open(&tight);
    let most = tight.memory.unwrap() + (24 << 20);
    let runs = while_resized(&engine, most, 1000, &|| assert!(say(&engine, 24) == want));
    let s = stats(&engine);
    println!(
        "{runs} answers, {} resizes, {} MB given back, {} evictions, {} MB moved",
        s.resizes,
        s.bytes_given_back >> 20,
        s.evictions,
        s.bytes_moved >> 20
    );
    assert!(
        s.resizes >= 1000 && s.bytes_given_back > 1 << 30 && s.evictions > 1000 && s.bytes_moved > 1 << 20
    );
    assert!(runs > 1 && s.bytes_ahead > 0, "generations went on all the while");
}

#[test]
fn adaptive_precision_goes_on() {
    let o = with_budget(
        &default_model(),
        options(Precision::Adaptive { quality: 4.0, floor: Level::B3 }),
        8 << 20,
    );
    let engine = open(&o);
    while_resized(&engine, o.memory.unwrap() + (24 << 20), 200, &|| assert_eq!(say(&engine, 8).len(), 8));
    let s = stats(&engine);
    assert!(s.resizes >= 200 && s.evictions > 0 && s.downgrades > 0 && s.bytes_given_back > 0);
}

#[test]
fn the_thread_that_generates_may_ask_too() {
    let want = say(&open(&exact()), 24);
    let engine = open(&with_budget(&default_model(), exact(), 16 << 20));
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let prompt: Vec<u32> = (0..40u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 49_000).collect();
    let o = set!(GenerateOptions {
        max_tokens: 24,
        sampling: Sampling::greedy(),
        ignore_eos: true,
        ..GenerateOptions::default()
    });
    let (mut events, mut given) = (0, 0);
    let outcome = session.generate(&prompt, &o, &mut |_| {
        events += 1;
        given += engine.trim(LEVELS[events % 4]).unwrap();
    });
    assert!(outcome.unwrap().tokens == want && given > 0);
    assert_eq!(stats(&engine).resizes, events as u64);
}

#[test]
fn a_cache_grows_beyond_what_it_was_and_keeps_what_it_has() {
    let tight = with_budget(&default_model(), exact(), 12 << 20);
    let engine = open(&tight);
    let want = say(&engine, 24);
    let (before, cache) = (stats(&engine), engine.memory_plan().expert_bytes);
    // All experts fit. The resident ones are still there.
    assert_eq!(engine.set_memory(tight.memory.unwrap() + (80 << 20)).unwrap(), 0);
    let plan = engine.memory_plan();
    assert!(plan.expert_bytes > 2 * cache && plan.levels.last().unwrap().resident == 1.0, "{plan:?}");
    assert!(stats(&engine).bytes_moved >= before.bytes_moved + cache / 2, "it was moved to other memory");
    assert!(say(&engine, 24) == want);
    let grown = stats(&engine).since(&before);
    assert_eq!((grown.evictions, grown.downgrades), (0, 0), "there is room for all");
    let before = stats(&engine);
    assert!(say(&engine, 24) == want);
    assert_eq!(stats(&engine).since(&before).bytes_wanted, 0, "everything is there");
}

#[test]
fn levels_are_sizes_and_the_budget_comes_back() {
    let o = with_budget(&default_model(), exact(), 16 << 20);
    let engine = open(&o);
    let plan = engine.memory_plan();
    say(&engine, 8);
    let mut last = plan.expert_bytes;
    for level in &LEVELS[1..] {
        let given = engine.trim(*level).unwrap();
        let now = engine.memory_plan().expert_bytes;
        assert!(now < last && given == last - now, "{level:?}: {last} to {now}, {given} given back");
        assert_eq!(engine.trim(*level).unwrap(), 0, "the same level again");
        last = now;
    }
    let least = engine.memory_plan();
    let Err(Error::Budget { smallest, .. }) = engine.set_memory(least.total_bytes() - 1) else {
        panic!("less than the smallest was taken")
    };
    assert_eq!(smallest, least.total_bytes());
    engine.trim(TrimLevel::Normal).unwrap();
    assert_eq!(engine.memory_plan(), plan);
    engine.set_memory(smallest).unwrap();
    assert_eq!(say(&engine, 2).len(), 2);
}

#[test]
fn what_is_resident_gives_nothing_but_may_be_streamed_from_the_start() {
    let resident = open(&exact());
    let plan = resident.memory_plan();
    let refused = resident.set_memory(plan.total_bytes() - 1).unwrap_err();
    assert!(matches!(&refused, Error::Budget { smallest, .. } if *smallest == plan.total_bytes()));
    assert!(refused.to_string().contains("not streamed"), "{refused}");
    resident.set_memory(plan.total_bytes()).unwrap();
    let want = say(&resident, 8);
    assert_eq!(resident.trim(TrimLevel::Moderate).unwrap(), 0);
    assert!(resident.trim(TrimLevel::Complete).unwrap() > 20 << 20, "the mapping's pages");
    assert!(say(&resident, 8) == want, "they come back");

    let memory = Some(1 << 30);
    assert!(!open(&set!(EngineOptions { memory, ..exact() })).memory_plan().streaming);
    let streaming = set!(StreamingOptions { always: true, ..StreamingOptions::default() });
    let engine = open(&set!(EngineOptions { memory, streaming, ..exact() }));
    let plan = engine.memory_plan();
    assert!(plan.streaming && plan.total_bytes() < 1 << 30, "no more than all experts take");
    assert!(say(&engine, 8) == want && say(&engine, 8) == want);
    assert_eq!(stats(&engine).evictions, 0);
    assert!(engine.trim(TrimLevel::Complete).unwrap() > 10 << 20);
    assert!(say(&engine, 8) == want && stats(&engine).evictions > 0);
}

#[test]
fn a_gpus_memory_is_not_resized() {
    if !has_gpu() {
        return;
    }
    let o = exact().with_backend(BackendChoice::Gpu(None));
    let engine = Engine::open(short_model(), &with_budget(&short_model(), o, 0)).unwrap();
    assert!(engine.memory_plan().streaming && engine.memory_plan().gpu);
    assert!(matches!(engine.set_memory(1 << 30), Err(Error::Unsupported { .. })));
    assert_eq!(engine.trim(TrimLevel::Complete).unwrap(), 0);
}
