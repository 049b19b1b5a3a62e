//! Decoding allocates nothing, on the calling thread and on the pool's threads, at any depth of the context. A
//! separate binary, because it counts the allocations of the whole process, except for the test harness's thread.
#![allow(unsafe_code)]

use dollop::Level;
use dollop::sampler::Sampler;
use dollop::{Engine, EngineOptions, SessionOptions};
use dollop_tests::{root, set, tiny::Tiny};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The test harness's own thread, by the address of its `HERE`: the first thread that allocates. It is not
/// counted. If a test takes a minute, as on a busy machine, the harness prints a message, for which it allocates.
static HARNESS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HERE: u8 = const { 0 };
}

/// The calling thread's number, obtained without an allocation.
fn here() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

// SAFETY: all calls go to the system allocator; a counter beside it changes nothing. The methods not written
// out call `alloc` and so are counted as well.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let here = here();
        let first = HARNESS.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err_and(|harness| harness != here) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller guarantees it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees it.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing() {
    assert_ne!(here(), HARNESS.load(Ordering::Relaxed), "this thread is not counted");
    let options = EngineOptions::default().with_threads(2);
    let engine = Engine::open(root().join("models/smollm2-moe.gguf"), &options).unwrap();
    let session_options = SessionOptions::default().with_context(1200).with_chunk(256);
    let mut session = engine.session(session_options).unwrap();
    // Use every expert, every thread and every buffer of a prompt's size once; then decode several tokens.
    let vocab = engine.info().vocab as u32;
    let token = |i: u32| i.wrapping_mul(2_654_435_761) % vocab;
    let prompt: Vec<u32> = (0..1000).map(token).collect();
    session.for_each_logits(&prompt, &mut |_, _| ()).unwrap();
    let mut decode = |from: u32, n: u32| {
        let mut sum = 0.0;
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for i in from..from + n {
            session.for_each_logits(&[token(i)], &mut |_, logits| sum += logits[0]).unwrap();
        }
        assert!(sum != 0.0, "nothing was computed");
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    decode(1000, 4);
    // Across position 1024, from which attention splits a token's work among threads.
    assert_eq!(decode(1004, 60), 0, "allocations in 60 tokens");
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0, "nothing was counted");
    sampling();
    rotated();
    // Serving streamed experts allocates a little; reading rows of an embedding that is not in memory adds
    // nothing to it. Not a separate test, because its allocations would be counted here.
    let ((read, bytes), (held, none)) = (streamed(false), streamed(true));
    assert_eq!(read, held, "allocations with an embedding that is read, and with one that is held");
    assert!(bytes > 0 && none == 0, "{bytes} bytes, and {none}");
}

/// A sampler with every link active allocates nothing once its buffers have grown to its vocabulary and its history.
fn sampling() {
    let mut logits: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
    for with in [
        r#"{"dry_multiplier": 0.8, "repeat_penalty": 1.1, "typical_p": 0.9, "top_n_sigma": 9, "xtc_probability": 0.5, "top_k": 4000}"#,
        r#"{"mirostat": "v1"}"#,
        r#"{"mirostat": "v2"}"#,
    ] {
        let mut sampler = Sampler::new(serde_json::from_str(with).unwrap()).unwrap();
        let mut tokens = |n: usize| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..n {
                logits.rotate_left(7);
                let token = sampler.sample(&mut logits);
                sampler.accept(token % 9);
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        assert!(tokens(200) > 0, "nothing was counted");
        assert_eq!(tokens(200), 0, "allocations of {with}");
    }
}

/// Rotating the inputs of experts allocates nothing.
fn rotated() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::load("olmoe").write_fed_back(folder.path(), true);
    assert!(dollop::inspect::inspect(&path).unwrap().rotated_weights > 0);
    let engine = Engine::open(&path, &EngineOptions::default().with_threads(2)).unwrap();
    let mut session = engine.session(SessionOptions::default().with_context(128)).unwrap();
    // Tokens that choose many experts: each expert has a list that grows with its first token.
    let token = |i: u32| i * 37 % 256;
    session.for_each_logits(&(0..40).map(token).collect::<Vec<_>>(), &mut |_, _| ()).unwrap();
    let mut decode = |n: u32| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..n).for_each(|i| session.for_each_logits(&[token(i)], &mut |_, _| ()).unwrap());
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    decode(4);
    assert_eq!(decode(60), 0, "allocations in 60 tokens with rotated inputs");
}

/// Allocations of 60 streamed tokens with all experts in the cache, which come from servings, and the bytes
/// of the embedding read meanwhile.
fn streamed(tied: bool) -> (usize, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::load("olmoe");
    if tied {
        tiny.config["tie_word_embeddings"] = true.into();
        tiny.tensors.retain(|t| t.0 != "lm_head.weight");
    }
    tiny.write_folder(folder.path());
    let path = folder.path().join("tiny.gguf");
    let convert = dollop::convert::convert;
    convert(folder.path(), &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    let mut options = set!(EngineOptions { threads: 2, level: Some(Level::B8), ..EngineOptions::default() });
    options.memory = Some(Engine::plan(&path, &options).unwrap().total_bytes() - 1);
    let engine = Engine::open(&path, &options).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut decode = || {
        session.rewind(0);
        let before = (ALLOCATIONS.load(Ordering::Relaxed), engine.stream_stats().unwrap());
        for i in 0..60 {
            session.for_each_logits(&[i * 37 % 256], &mut |_, _| ()).unwrap();
        }
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before.0;
        (allocations, engine.stream_stats().unwrap().since(&before.1))
    };
    decode();
    let (allocations, stats) = decode();
    assert!(stats.bytes_wanted == 0 && stats.servings > 0, "{stats:?}");
    (allocations, stats.bytes_embedding)
}
