//! Gates 28 and 29, and gate 43 with them: experts on a GPU, the hottest with one more plane. Tokens are
//! reproducible, take one submission and one read-back, and survive failed reads.

use super::*;
use dollop::{StreamStats, StreamingOptions};
use dollop_tests::{HeldFile, with_refinements};
use std::sync::Arc;

/// Adaptive precision with a budget for all experts at 3 bits, and for about `share` of the fourth bits.
fn refined(share: f64) -> EngineOptions {
    refined_of(&short_model(), share)
}

fn refined_of(path: &Path, share: f64) -> EngineOptions {
    let precision = Some(Precision::Adaptive { quality: 4.0, floor: Level::B2 });
    let o = set!(EngineOptions { precision, context: Some(64), chunk: Some(32), ..on_gpu() });
    with_refinements(path, o, share)
}

/// Numbers of tokens of a normal text: of the prompt, and of its continuation.
const PROMPT: usize = 20;
const TOKENS: usize = 38;

/// A normal text.
fn text(engine: &Engine) -> Vec<u32> {
    let text = "Water boils at one hundred degrees Celsius at sea level. On top of a mountain the air is thinner, and it \
                boils at a lower temperature, so that potatoes take longer to cook. A pressure cooker does the opposite: \
                the steam cannot leave, the pressure rises, and the water becomes hotter than one hundred degrees.";
    let mut ids = engine.encode_text(text).unwrap();
    assert!(ids.len() >= TOKENS, "{} tokens", ids.len());
    ids.truncate(TOKENS);
    ids
}

/// Tokens one by one after a prompt: their logits, and the engine's counters. With a held file, planes arrive
/// only when a token waits for them.
fn decoded(engine: &Engine, held: Option<&HeldFile>) -> (Vec<Vec<f32>>, StreamStats) {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = text(engine);
    let mut all = vec![outcome(&mut session, &ids[..PROMPT]).unwrap()];
    for id in ids[PROMPT..].chunks(1) {
        let waits = || engine.refiner().unwrap().waits();
        all.push(match held {
            Some(file) => file.late(&waits, || outcome(&mut session, id).unwrap(), || ()),
            None => outcome(&mut session, id).unwrap(),
        });
    }
    if let Some(file) = held {
        file.hold(false);
    }
    (all, engine.stream_stats().unwrap())
}

/// An engine that reads its experts or refinements from a held file.
pub(super) fn with_faults(o: &EngineOptions) -> (Engine, Arc<HeldFile>) {
    let file = HeldFile::open(&short_model());
    let streaming = set!(StreamingOptions { storage: Some(file.clone()), ..o.streaming.clone() });
    let o = set!(EngineOptions { streaming, ..o.clone() });
    (Engine::open(short_model(), &o).unwrap(), file)
}

#[test]
fn gate_28_the_hottest_experts_get_a_plane_more_and_no_token_waits_for_the_router() {
    if !has_gpu() {
        return;
    }
    let o = refined(0.3);
    let opened = |o: &EngineOptions| Engine::open(short_model(), o).unwrap();
    let engine = opened(&o);
    let plan = engine.memory_plan();
    let refinements = plan.refinements.unwrap();
    assert!(plan.lowered && !plan.streaming && plan.total_bytes() <= plan.budget.unwrap());
    assert!(refinements.bits == 4 && refinements.share > 0.2 && refinements.share < 0.4, "{refinements:?}");
    let mode = &engine.info().mode;
    assert!(mode.contains("level 3 for all experts and 4 for") && mode.contains("on the device"), "{mode}");
    let planned =
        plan.dense_bytes + plan.kv_bytes + plan.scratch_bytes + plan.expert_bytes + refinements.bytes;
    let held = engine.gpu_stats().unwrap().held_bytes;
    assert!(
        held > plan.expert_bytes + refinements.bytes && held <= planned,
        "{held} held, {planned} planned"
    );

    // The same state gives the same results, however late reads complete.
    let (want, stats) = decoded(&engine, None);
    assert!(stats.upgrades > 0 && stats.downgrades > 0 && stats.bytes_wanted > 0, "{stats:?}");
    assert!(stats.mean_bits() > 3.05 && stats.mean_bits() < 4.0 && stats.decisions != 0, "{stats:?}");
    let (late, storage) = with_faults(&o);
    let (again, repeated) = decoded(&late, Some(&storage));
    drop(late);
    assert!(again == want, "the same input from the same state gives another output");
    assert_eq!((repeated.decisions, repeated.stalls > 0), (stats.decisions, true), "{repeated:?}");
    assert!(storage.stopped() > 0, "no read was held back");

    // `launches_and_uploads` asserts one submission and read-back per token. A shared expert takes two of eight launches.
    let ((n, uploaded), layers) = (launches_and_uploads(&engine), engine.info().layers as u64);
    assert_eq!(n, 8 * layers + 3);
    assert!(uploaded > 0);

    // It differs from the common level of all experts, and is closer to the next one.
    let exact = |level| {
        let o = set!(EngineOptions { precision: Some(Precision::Exact(level)), memory: None, ..o.clone() });
        let engine = opened(&o);
        let (mut session, ids) = (engine.session(SessionOptions::default()).unwrap(), text(&engine));
        session.best(&ids[..PROMPT], 1).unwrap();
        session.logits(&ids[PROMPT..]).unwrap()
    };
    let (low, high) = (exact(Level::B3), exact(Level::B4));
    let distance = |a: &[Vec<f32>]| -> f64 {
        let squares = a.iter().flatten().zip(high.iter().flatten());
        squares.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let (far, near) = (distance(&low), distance(&want[1..]));
    println!("squared distance from 4 bits: {far:.0} at 3 bits, {near:.0} at {:.2}", stats.mean_bits());
    assert!(near < far && near > 0.0, "{near} of {far}");

    // A failed read is an error, and never a different token: all experts continue at their levels.
    let (engine, storage) = with_faults(&o);
    storage.fail(true);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = text(&engine);
    let mut failures = 0;
    let mut run = |failures: &mut usize| {
        session.rewind(0);
        let (mut at, mut got) = (0, Vec::new());
        while at < PROMPT + 6 {
            let next = if at == 0 { 0..PROMPT } else { at..at + 1 };
            match outcome(&mut session, &ids[next.clone()]) {
                Ok(row) => {
                    got.push(row);
                    at = next.end;
                }
                Err(e @ Error::Io { .. }) => {
                    let text = e.to_string();
                    assert!(text.contains("EIO") && text.contains("smollm2-moe"), "{text}");
                    *failures += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
        got
    };
    let got = run(&mut failures);
    let stats = engine.stream_stats().unwrap();
    assert!(failures > 1 && stats.upgrades == 0 && stats.mean_bits() > 3.0, "{failures} failures, {stats:?}");
    assert!(got[0] == want[0] && got == run(&mut failures), "a failed read shows in a result");
}

#[test]
fn gate_43_refined_experts_cost_a_token_that_is_chosen_on_the_device_no_further_wait() {
    if !has_gpu() {
        return;
    }
    let o = refined(0.3);
    let open = || Engine::open(short_model(), &o).unwrap();
    let (engine, whole) = (open(), open());
    let options = SessionOptions::default().with_context(64);
    let prompt = &text(&engine)[..20];
    let generate = set!(GenerateOptions {
        max_tokens: 32,
        sampling: Sampling::greedy(),
        ignore_eos: true,
        ..GenerateOptions::default()
    });
    let mut session = engine.session(options).unwrap();
    let (mut before, mut tokens) = (engine.gpu_stats().unwrap(), 0);
    let outcome = session.generate(prompt, &generate, &mut |event| {
        let Event::Token { .. } = event else { return };
        let after = engine.gpu_stats().unwrap();
        let [_, submits, readbacks, _] = since(&after, &before);
        // The first token comes with the prompt, which also has only one read-back.
        assert_eq!((submits, readbacks), (1, 1), "token {tokens}");
        assert!(after.read_bytes - before.read_bytes < 4 * engine.info().vocab as u64);
        // A token's resources are created with the first decoded one; a refinement needs no new ones.
        if tokens > 1 {
            assert_eq!(kept(&before), kept(&after), "token {tokens} allocates");
        }
        (before, tokens) = (after, tokens + 1);
    });
    let stats = engine.stream_stats().unwrap();
    assert!(stats.upgrades > 0 && stats.mean_bits() > 3.0, "{stats:?}");
    let want = chosen_among_all(&mut whole.session(options).unwrap(), prompt, &Sampling::greedy(), 32);
    assert_eq!((outcome.unwrap().tokens, tokens), (want, 32), "another choice from whole logits");
}

#[test]
fn gate_29_a_token_beside_which_experts_are_refined_costs_six_launches_a_layer_and_one_read_back() {
    if !has_gpu() {
        return;
    }
    // Without a shared expert, which takes two more launches.
    let (_folder, tiny) = file_of(&Tiny::load("olmoe").with_experts(64));
    for (path, share, launches, end) in [(tiny, 0.4, 6, 40), (short_model(), 0.3, 8, 20)] {
        let engine = Engine::open(&path, &refined_of(&path, share)).unwrap();
        let info = engine.info();
        assert!(
            engine.memory_plan().refinements.is_some() && info.mode.contains("and 4 for"),
            "{}",
            info.mode
        );
        let (layers, vocab) = (info.layers as u64, info.vocab as u32);
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let mut token = |id: u32| session.logits(&[id % vocab]).unwrap();
        (1..4).for_each(|id| drop(token(id)));
        let (mut counted, mut before) = (0, engine.gpu_stats().unwrap());
        for id in 4..end {
            let upgrades = engine.stream_stats().unwrap().upgrades;
            token(id * 37);
            let after = engine.gpu_stats().unwrap();
            let [dispatches, submits, readbacks, uploaded] = since(&after, &before);
            let upgraded = engine.stream_stats().unwrap().upgrades > upgrades;
            assert_eq!((submits, readbacks, uploaded > 0), (1, 1, upgraded), "token {id}");
            // Launches outside the layers: the embedding, a copy, and the head.
            assert_eq!(dispatches, launches * layers + 3);
            assert_eq!(kept(&before), kept(&after), "decoding allocates");
            (counted, before) = (counted + u64::from(upgraded), after);
        }
        let stats = engine.stream_stats().unwrap();
        assert!(counted > 1 && stats.mean_bits() > 3.0, "{counted} tokens with refinements: {stats:?}");
    }
}
