//! Gate 70: sessions that outlive their process. A restored session gives bit-identical logits to a session
//! without a break, for every family, resident, streamed and on a GPU, and recomputes nothing. Forks of one
//! prefix do not affect each other. Damaged files and files of other models are refused with a reason.

use dollop::Level;
use dollop::Precision;
use dollop::sampler::Sampling;
use dollop::{
    BackendChoice, Chat, Engine, EngineOptions, GenerateOptions, Overflow, Session, SessionOptions,
};
use dollop_tests::tiny::{self, Tiny};
use dollop_tests::{has_gpu, test_model, with_budget};
use std::path::{Path, PathBuf};

#[path = "saved/in_place.rs"]
mod in_place;
#[path = "saved/refused.rs"]
mod refused;

/// A prompt of more than one block of keys, and the tokens after it.
const PROMPT: usize = 21;

fn exact(level: Level) -> EngineOptions {
    EngineOptions::default().with_threads(2).with_precision(Precision::Exact(level)).with_context(64)
}

/// The same under the smallest budget that works.
fn smallest(path: &Path, o: EngineOptions) -> EngineOptions {
    with_budget(path, o, 0)
}

fn file_of(tiny: &Tiny, folder: &Path) -> PathBuf {
    tiny.write_folder(folder);
    let path = folder.join("tiny.gguf");
    let convert = dollop::convert::convert;
    convert(folder, &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    path
}

fn ids(vocab: usize) -> Vec<u32> {
    (0..PROMPT as u32 + 6).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % vocab as u32).collect()
}

/// Logits after each of `ids`, one at a time.
fn go_on(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
    ids.iter().flat_map(|&id| session.logits(&[id]).unwrap()).collect()
}

/// Saves a session of `first` after a prompt, continues it, and compares with `second` continuing the saved one.
fn survives(what: &str, first: &Engine, second: &Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let ids = ids(first.info().vocab);
    let mut session = first.session(SessionOptions::default().with_chunk(8)).unwrap();
    // Longer than needed: rewound tokens are not saved.
    session.logits(&ids[..PROMPT]).unwrap();
    session.logits(&ids[PROMPT..]).unwrap();
    assert_eq!(session.rewind(PROMPT), PROMPT);
    let bytes = session.save(&path).unwrap();
    assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
    let want = go_on(&mut session, &ids[PROMPT..]);
    drop(session);

    let mut restored = second.load_session(&path, SessionOptions::default()).unwrap();
    assert_eq!(restored.tokens(), &ids[..PROMPT], "{what}");
    assert_eq!(restored.processed_tokens(), 0);
    assert!(go_on(&mut restored, &ids[PROMPT..]) == want, "{what}: other logits");
    assert_eq!(restored.processed_tokens(), 6, "{what}: the prompt was computed again");
    // To memory, and back: rewound tokens leave no trace, so the file is the same.
    assert_eq!(restored.rewind(PROMPT), PROMPT);
    let mut again = Vec::new();
    assert_eq!(restored.write_to(&mut again).unwrap(), bytes);
    assert!(again == std::fs::read(&path).unwrap(), "{what}: another file");
    // A tight budget has room for one session.
    drop(restored);
    let mut third = second.read_session(&mut &again[..], SessionOptions::default()).unwrap();
    assert!(go_on(&mut third, &ids[PROMPT..]) == want, "{what}: other logits from memory");
}

#[test]
fn every_family_goes_on_where_it_stopped() {
    let (mut streamed, mut all) = (0, 0);
    for name in tiny::names() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&Tiny::load(&name), folder.path());
        let resident = exact(Level::B4);
        let open = |o: &EngineOptions| Engine::open(&path, o).unwrap();
        survives(&name, &open(&resident), &open(&resident));
        all += 1;
        if open(&resident).info().experts == 0 {
            continue;
        }
        // Saved by an engine that streams with the smallest budget and restored by one with everything
        // resident, and vice versa.
        let tight = smallest(&path, resident.clone());
        let (first, second) = (open(&tight), open(&tight));
        survives(&format!("{name}, streamed"), &first, &second);
        survives(&format!("{name}, streamed, then resident"), &first, &open(&resident));
        survives(&format!("{name}, resident, then streamed"), &open(&resident), &second);
        for engine in [first, second] {
            assert!(engine.stream_stats().is_some_and(|s| s.evictions > 0 && s.bytes_wanted > 0), "{name}");
        }
        streamed += 1;
    }
    assert!(all >= 24 && streamed >= 10, "{all} goldens, {streamed} with experts");
}

#[test]
fn a_gpu_gives_its_memory_to_a_file_and_takes_it_back() {
    if !has_gpu() {
        return;
    }
    let gpu = |o: EngineOptions| o.with_backend(BackendChoice::Gpu(None));
    // Heads of other lengths, with and without experts.
    for name in tiny::names().into_iter().step_by(5) {
        let folder = tempfile::tempdir().unwrap();
        let path = file_of(&Tiny::load(&name), folder.path());
        let open = |o: EngineOptions| Engine::open(&path, &gpu(o)).unwrap();
        let read = |engine: &Engine| engine.gpu_stats().unwrap().readbacks;
        let (first, second) = (open(exact(Level::B4)), open(exact(Level::B4)));
        let before = read(&first);
        survives(&name, &first, &second);
        assert!(read(&first) > before);
        if first.info().experts > 0 {
            let tight = smallest(&path, gpu(exact(Level::B4)));
            survives(&format!("{name}, streamed"), &open(tight.clone()), &open(tight));
        }
    }
    // On another backend: as close as backends are.
    let o = exact(Level::B4);
    let first = Engine::open(test_model(), &gpu(o.clone())).unwrap();
    let second = Engine::open(test_model(), &o).unwrap();
    let ids = ids(first.info().vocab);
    let mut session = first.session(SessionOptions::default()).unwrap();
    session.logits(&ids[..PROMPT]).unwrap();
    let mut bytes = Vec::new();
    session.write_to(&mut bytes).unwrap();
    let want = go_on(&mut session, &ids[PROMPT..]);
    let mut moved = second.read_session(&mut &bytes[..], SessionOptions::default()).unwrap();
    let got = go_on(&mut moved, &ids[PROMPT..]);
    assert_eq!(moved.processed_tokens(), 6);
    let apart = |a: &[Vec<f32>]| {
        let pairs = a.iter().flatten().zip(want.iter().flatten());
        pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
    };
    let mut own = second.session(SessionOptions::default()).unwrap();
    own.logits(&ids[..PROMPT]).unwrap();
    let own = go_on(&mut own, &ids[PROMPT..]);
    assert!(apart(&got) <= 1.5 * apart(&own), "{} and {}", apart(&got), apart(&own));
}

#[test]
fn forks_continue_one_prefix_in_several_ways() {
    let engine = Engine::open(test_model(), &exact(Level::B4)).unwrap();
    let ids = ids(engine.info().vocab);
    let mut trunk = engine.session(SessionOptions::default()).unwrap();
    trunk.logits(&ids[..PROMPT]).unwrap();
    let mut forks = [trunk.fork().unwrap(), trunk.fork().unwrap()];
    assert!(forks.iter().all(|f| f.processed_tokens() == 0 && f.tokens() == trunk.tokens()));
    let alone = |more: &[u32]| {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        session.logits(&ids[..PROMPT]).unwrap();
        go_on(&mut session, more)
    };
    let ways = [vec![7, 8, 9], vec![70, 80, 90]];
    let wants: Vec<_> = ways.iter().map(|way| alone(way)).collect();
    // In turn, so that a fork would read the other's writes.
    for at in 0..3 {
        for (fork, (way, want)) in forks.iter_mut().zip(ways.iter().zip(&wants)) {
            assert!(go_on(fork, &way[at..=at])[0] == want[at]);
        }
    }
    assert!(go_on(&mut trunk, &ids[PROMPT..]) == alone(&ids[PROMPT..]));
}

#[test]
fn a_budget_for_one_session_has_no_room_for_a_fork() {
    let tight = smallest(&test_model(), exact(Level::B4));
    let engine = Engine::open(test_model(), &tight).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&[1, 2, 3]).unwrap();
    let refused = session.fork().err().expect("there is no room").to_string();
    assert!(refused.contains("--memory"), "{refused}");
    assert_eq!(session.logits(&[4]).unwrap().len(), 1);
}

#[test]
fn a_conversation_goes_on_with_what_was_said() {
    let greedy = GenerateOptions::default().with_max_tokens(8).with_sampling(Sampling::greedy());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat");
    let open = || Engine::open(test_model(), &exact(Level::B4).with_context(512)).unwrap();
    let session = open().session(SessionOptions::default()).unwrap();
    let mut chat = Chat::new(session, Some("You are brief.".into()), Overflow::Slide).unwrap();
    chat.set_variables([("mood".to_owned(), "calm".into())].into_iter().collect());
    chat.send("Name a color.", &greedy, &mut |_| ()).unwrap();
    chat.save(&path).unwrap();
    let said = chat.messages().to_vec();
    let next = chat.send("And another?", &greedy, &mut |_| ()).unwrap();

    let mut restored = open().load_chat(&path, SessionOptions::default()).unwrap();
    assert_eq!(restored.messages(), &said);
    let same = restored.send("And another?", &greedy, &mut |_| ()).unwrap();
    assert_eq!((&same.text, same.reused_tokens), (&next.text, next.reused_tokens));
    assert!(same.reused_tokens > 20 && restored.session().processed_tokens() < 40);
    // Replaces the older file, which stays complete until then; no other file stays in the folder.
    restored.save(&path).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let latest = open().load_chat(&path, SessionOptions::default()).unwrap();
    assert_eq!(latest.messages().len(), 5);
    // The file is also a session, but a session is not a conversation.
    let session = open().load_session(&path, SessionOptions::default()).unwrap();
    session.save(&path).unwrap();
    let refused = open().load_chat(&path, SessionOptions::default()).err().unwrap().to_string();
    assert!(refused.contains("without a conversation"), "{refused}");
}

#[test]
fn what_a_lost_gpu_held_is_saved_as_tokens() {
    if !has_gpu() {
        return;
    }
    let o = exact(Level::B4).with_backend(BackendChoice::Gpu(None));
    let engine = Engine::open(test_model(), &o).unwrap();
    let ids = ids(engine.info().vocab);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&ids[..PROMPT]).unwrap();
    engine.lose_gpu(1, dollop::internal::GpuFault::Lost);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    session.save(&path).unwrap();
    assert!(engine.lost().is_some(), "the GPU was lost while its memory was read");
    let cpu = Engine::open(test_model(), &exact(Level::B4)).unwrap();
    let mut restored = cpu.load_session(&path, SessionOptions::default()).unwrap();
    assert_eq!(restored.tokens(), &ids[..PROMPT]);
    let mut whole = cpu.session(SessionOptions::default()).unwrap();
    whole.logits(&ids[..PROMPT]).unwrap();
    assert!(go_on(&mut restored, &ids[PROMPT..]) == go_on(&mut whole, &ids[PROMPT..]));
    assert_eq!(restored.processed_tokens(), ids.len() as u64, "all tokens were read again");
    assert_eq!(session.fork().unwrap().tokens(), &ids[..PROMPT]);
}
