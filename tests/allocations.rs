//! Decoding allocates nothing: neither on the thread that asks nor on those that help, whatever the depth of the context.
//! A binary of its own, because it counts what the whole process allocates.
#![allow(unsafe_code)]

use dollop::{Engine, EngineOptions, SessionOptions};
use dollop_tests::root;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; a counter beside it changes nothing. The methods not written out call
// `alloc` and so are counted as well.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing() {
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    let engine = Engine::open(&root().join("models/smollm2-moe.gguf"), &options).unwrap();
    let session_options = SessionOptions { context: Some(1200), chunk: Some(256) };
    let mut session = engine.session(session_options).unwrap();
    // Every expert, every thread and every buffer of a prompt's size is used once; then a few tokens alone.
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
    // Over the edge of 1024 positions, where attention begins to share a token's work among threads.
    assert_eq!(decode(1004, 60), 0, "allocations in 60 tokens");
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0, "nothing was counted");
}
