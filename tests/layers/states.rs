//! Gates 96 to 98: sessions of models with convolutions, whose layers keep a state for one position, and
//! marks of earlier ones.

use super::{CONTEXT, ids, last, long, session};
use dollop::sampler::Sampling;
use dollop::{
    BackendChoice, Engine, EngineOptions, Event, GenerateOptions, Level, Outcome, Precision, Session,
    SessionOptions, StopReason,
};
use dollop_tests::has_gpu;
use dollop_tests::tiny::Tiny;
use std::ops::ControlFlow;

/// The most positions between marks, unless chunks are longer.
const STEP: usize = 256;

/// Slots of a state: marks, the current one and the next one.
const SLOTS: usize = 16;

fn greedy(n: usize) -> GenerateOptions {
    let mut options = GenerateOptions::default().with_max_tokens(n).with_sampling(Sampling::greedy());
    options.ignore_eos = true;
    options
}

fn say(session: &mut Session, prompt: &[u32]) -> Outcome {
    session.generate(prompt, &greedy(20), &mut |_| ()).unwrap()
}

/// Gate 97: a turn is computed without the conversation before it; also for another answer, or a shortened one.
fn converses(name: &str, options: &EngineOptions, length: usize) {
    let engine = long(name, options);
    let mut talk = session(&engine, 64);
    let first = say(&mut talk, &ids(length));
    let more = &ids(length + 16)[length..];
    let text = [&ids(length), &first.tokens[..], more].concat();
    let held = length + 19;
    let before = talk.processed_tokens();
    let second = say(&mut talk, &text);
    assert_eq!(second.reused_tokens, held);
    // The last token of the context, the turn, and all but the last token of the answer.
    assert_eq!(talk.processed_tokens() - before, 1 + 16 + 19);
    let fresh = say(&mut session(&engine, 64), &text);
    assert_eq!((&second.tokens, fresh.reused_tokens), (&fresh.tokens, 0), "{name}");
    // Another answer to the same turn: the turn is computed again.
    let before = talk.processed_tokens();
    let again = say(&mut talk, &text);
    assert_eq!((again.tokens, again.reused_tokens), (fresh.tokens, held), "{name}");
    assert_eq!(talk.processed_tokens() - before, 1 + 16 + 19);
    // The first answer is left out, as templates do with reasoning: its turn's end is a mark.
    let text = [&ids(length), more].concat();
    let third = say(&mut talk, &text);
    assert_eq!(third.reused_tokens, length);
    assert_eq!(third.tokens, say(&mut session(&engine, 64), &text).tokens, "{name}");
}

/// Gate 96: rewound to any position, stopped in the middle, and continued in several ways.
fn goes_back(name: &str, options: &EngineOptions, length: usize) {
    let engine = long(name, options);
    let ids = ids(length);
    let mut whole = session(&engine, 64);
    last(&mut whole, &ids);
    let mut again = 0;
    for back in [2, 40, 300, 700] {
        let to = length - back;
        let reached = whole.rewind(to);
        assert!(reached <= to && to - reached <= 2 * STEP.max(back), "{name}: {reached} of {to}");
        assert_eq!(whole.tokens().len(), to);
        let before = whole.processed_tokens();
        let got = last(&mut whole, &ids[to..to + 1]);
        assert_eq!(whole.processed_tokens() - before, (to - reached + 1) as u64);
        again += to - reached;
        assert!(got == last(&mut session(&engine, 64), &ids[..to + 1]), "{name}: other logits at {to}");
        last(&mut whole, &ids[to + 1..]);
    }
    assert!(again > 0, "marks everywhere");
    // Stopped between layers: earlier results stay.
    let mut stopped = session(&engine, 64);
    let outcome = stopped.generate(&ids, &greedy(4), &mut |event| match event {
        Event::Prefill { done, .. } if done > 200 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(outcome.unwrap().stop, StopReason::Cancelled);
    let held = stopped.tokens().len();
    assert!((64..length).contains(&held));
    let before = stopped.processed_tokens();
    assert!(last(&mut stopped, &ids[held..]) == last(&mut session(&engine, 64), &ids), "{name}: stopped");
    assert_eq!(stopped.processed_tokens() - before, (length - held) as u64);
    // Forks continue independently, and can be rewound as far as the original.
    let mut forks = [stopped.fork().unwrap(), stopped.fork().unwrap()];
    let mut want = Vec::new();
    for fork in &mut forks {
        assert_eq!(fork.processed_tokens(), 0);
        want.push(last(fork, &[7]));
    }
    assert!(want[0] == want[1] && want[0] == last(&mut stopped, &[7]));
    assert_eq!(forks[0].rewind(length - 300), forks[1].rewind(length - 300));
    assert_eq!(forks[0].rewind(length - 300), stopped.rewind(length - 300));
    assert!(last(&mut forks[0], &[8]) == last(&mut stopped, &[8]));
}

#[test]
fn states_go_back_to_marks() {
    for name in ["lfm2moe", "lfm2-bias"] {
        goes_back(name, &EngineOptions::default(), 1500);
        converses(name, &EngineOptions::default(), 1000);
    }
}

#[test]
fn so_they_do_on_a_gpu() {
    if !has_gpu() {
        return;
    }
    let gpu = EngineOptions::default().with_backend(BackendChoice::Gpu(None));
    goes_back("lfm2", &gpu, 900);
    converses("lfm2moe", &gpu, 500);
    // A token's commands are recorded while the one before is computed, even if slots alternate.
    let engine = long("lfm2", &gpu);
    let mut session = session(&engine, 64);
    session.logits(&[1, 2, 3, 4, 5]).unwrap();
    let before = engine.gpu_stats().unwrap().ahead;
    for id in 0..8 {
        session.logits(&[id]).unwrap();
    }
    assert!(engine.gpu_stats().unwrap().ahead - before >= 6);
}

/// Gate 98: marks are counted by the plan and saved with a session, streamed or not.
#[test]
fn marks_are_counted_and_saved() {
    let mut tiny = Tiny::load("lfm2moe");
    tiny.config["max_position_embeddings"] = CONTEXT.into();
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let path = folder.path().join("tiny.gguf");
    let convert = dollop::convert::convert;
    convert(folder.path(), &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    let options = EngineOptions::default()
        .with_threads(2)
        .with_context(CONTEXT)
        .with_precision(Precision::Exact(Level::B8));
    let open = |options: &EngineOptions| Engine::open(&path, options).unwrap();
    let resident = open(&options);
    // One layer has attention, with 2 heads of 16 in half precision; three have states of two rows of 64.
    let (attention, states) = (CONTEXT * 2 * 2 * 16 * 2, 3 * SLOTS * 2 * 64 * 4);
    let planned = resident.memory_plan().kv_bytes as usize;
    assert!((attention + states..attention + states + 2048).contains(&planned), "{planned}");
    let tight = dollop_tests::with_budget(&path, options, 0);
    let streamed = open(&tight);
    let ids = ids(1200);
    for (first, second) in [(&resident, &resident), (&resident, &streamed), (&streamed, &resident)] {
        let new = |engine: &Engine| engine.session(SessionOptions::default().with_chunk(32)).unwrap();
        let mut bytes = Vec::new();
        let mut session = new(first);
        last(&mut session, &ids);
        session.write_to(&mut bytes).unwrap();
        let want = [last(&mut session, &[9]), last(&mut session, &[10])];
        drop(session);
        let mut restored =
            second.read_session(&mut &bytes[..], SessionOptions::default().with_chunk(32)).unwrap();
        assert!([last(&mut restored, &[9]), last(&mut restored, &[10])] == want, "other logits");
        let reached = restored.rewind(1000);
        assert!((744..=1000).contains(&reached), "{reached}");
        let before = restored.processed_tokens();
        let got = last(&mut restored, &ids[1000..1030]);
        assert_eq!(restored.processed_tokens() - before, (1030 - reached) as u64);
        drop(restored);
        assert!(got == last(&mut new(second), &ids[..1030]), "other logits behind a mark");
    }
    assert!(streamed.stream_stats().is_some_and(|s| s.evictions > 0 && s.bytes_wanted > 0));
}
