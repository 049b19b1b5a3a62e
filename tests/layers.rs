//! Gate 95: a layer keeps only as many earlier tokens as it needs, and a session is rewound within these
//! without recomputation. Further back, the session reports it, recomputes, and gives the same results.

use dollop::{BackendChoice, Engine, EngineOptions, Session, SessionOptions};
use dollop_tests::has_gpu;
use dollop_tests::tiny::{Tiny, ids};

#[path = "layers/states.rs"]
mod states;

/// Positions of the contexts in this file.
const CONTEXT: usize = 4096;

/// A model whose windows and marks are far shorter than its context.
fn long(name: &str, options: &EngineOptions) -> Engine {
    let mut tiny = Tiny::load(name);
    tiny.config["max_position_embeddings"] = CONTEXT.into();
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    Engine::open_reference(folder.path(), &options.clone().with_threads(2).with_context(CONTEXT)).unwrap()
}

fn session(engine: &Engine, chunk: usize) -> Session {
    engine.session(SessionOptions::default().with_context(CONTEXT).with_chunk(chunk)).unwrap()
}

/// Logits after `ids`.
fn last(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    session.last_logits(ids).unwrap()
}

fn goes_around(name: &str, options: &EngineOptions, chunk: usize, length: usize) {
    let engine = long(name, options);
    let ids = ids(length + 10);
    // With a chunk as long as the context, the cache has room for all of it.
    let (mut whole, mut around) = (session(&engine, CONTEXT), session(&engine, chunk));
    last(&mut whole, &ids[..length]);
    assert!(last(&mut around, &ids[..length]) == last(&mut session(&engine, CONTEXT), &ids[..length]));
    for &id in &ids[length..] {
        assert!(last(&mut around, &[id]) == last(&mut whole, &[id]), "{name}: other logits");
    }
    // Within the positions kept beyond a window, nothing is recomputed.
    let end = ids.len();
    let before = around.processed_tokens();
    assert_eq!(around.rewind(end - 300), end - 300);
    let want = last(&mut around, &ids[end - 300..]);
    assert_eq!(around.processed_tokens() - before, 300);
    whole.rewind(end - 300);
    assert!(want == last(&mut whole, &ids[end - 300..]), "{name}: other logits after going back");
    // A saved session and a fork can be rewound as far.
    let mut fork = around.fork().unwrap();
    assert_eq!((fork.rewind(end - 290), fork.processed_tokens()), (end - 290, 0));
    assert!(want == last(&mut fork, &ids[end - 290..]), "{name}: another copy");
    // At any distance, nothing is recomputed for the end of a turn: the windows' contents there were copied.
    let end = around.tokens().len();
    let more = &self::ids(end + 700)[end..];
    for turn in [&more[..3], &more[3..]] {
        last(&mut around, turn);
    }
    assert_eq!(around.rewind(end + 3), end + 3, "{name}");
    let before = around.processed_tokens();
    last(&mut whole, &more[..3]);
    for turn in [&more[5..9], &more[9..60]] {
        assert!(last(&mut around, turn) == last(&mut whole, turn), "{name}: other logits behind a copy");
    }
    assert_eq!(around.processed_tokens() - before, 55);
    assert_eq!(around.rewind(end), end);
    assert_eq!(around.rewind(end - 1), 0, "its copies are of other texts, or too new");
    last(&mut around, &[5]);
    // For a position of which nothing is kept, everything is recomputed, with the same results.
    let before = around.processed_tokens();
    assert_eq!(around.rewind(100), 0);
    assert_eq!(around.tokens().len(), 100);
    whole.rewind(100);
    assert!(last(&mut around, &ids[100..150]) == last(&mut whole, &ids[100..150]));
    assert_eq!(around.processed_tokens() - before, 150);
}

#[test]
fn a_layer_with_a_window_keeps_its_window() {
    for name in ["mistral-window", "gptoss", "mixtral-window", "gemma4", "gemma4-inputs"] {
        for chunk in [32, 100] {
            goes_around(name, &EngineOptions::default(), chunk, 1500);
        }
    }
    // Two of three layers have a window of 10, plus 512 positions and a tile; a chunk of 100 adds none.
    let engine = long("gptoss", &EngineOptions::default());
    let plan = engine.memory_plan();
    let position = 2 * 2 * 32 * 4;
    let places = (10 + 512 + 64usize).next_multiple_of(64);
    // And four copies of the windows' contents, in whole blocks.
    let copies = 4 * (26 + 32) * 2 * 32 * 4;
    let want = (CONTEXT + 2 * places) * position + 2 * copies;
    assert!((want..want + 3 * 512).contains(&(plan.kv_bytes as usize)), "{} of {want}", plan.kv_bytes);
}

#[test]
fn so_it_does_on_a_gpu() {
    if !has_gpu() {
        return;
    }
    let gpu = EngineOptions::default().with_backend(BackendChoice::Gpu(None));
    for name in ["mistral-window", "gptoss", "gemma4-inputs"] {
        goes_around(name, &gpu, 64, 900);
    }
}
