//! Gate 73: memory that is given back returns to the system, and a cache that grows stays within its budget.
//! A separate binary, because it measures the whole process.
#![cfg(any(target_os = "linux", target_os = "android"))]

use dollop::Level;
use dollop::Precision;
use dollop::internal::store::anonymous_bytes;
use dollop::{Engine, EngineOptions, SessionOptions, TrimLevel};
use dollop_tests::{default_model, set, with_budget};

/// Memory that the process needs beside the cache or still has from before: allocators keep some.
const SLACK: u64 = 4 << 20;

#[test]
fn gate_73_resident_memory_follows() {
    let o = set!(EngineOptions {
        threads: 2,
        precision: Some(Precision::Exact(Level::B4)),
        context: Some(96),
        chunk: Some(32),
        ..EngineOptions::default()
    });
    // Room for most experts.
    let o = with_budget(&default_model(), o, 20 << 20);
    let engine = Engine::open(default_model(), &o).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut at = 0u32;
    let mut fill = || {
        session.rewind(0);
        let ids: Vec<u32> = (0..64).map(|i| ((at + i).wrapping_mul(2_654_435_761) >> 9) % 49_000).collect();
        at += 64;
        session.logits(&ids).unwrap();
    };
    let memory = || anonymous_bytes().unwrap();
    let cache = || engine.memory_plan().expert_bytes;
    (0..4).for_each(|_| fill());
    let (full, full_cache) = (memory(), cache());
    for _ in 0..3 {
        for level in [TrimLevel::Moderate, TrimLevel::Critical, TrimLevel::Complete] {
            let given = engine.trim(level).unwrap();
            let gone = full_cache - cache();
            println!(
                "{level:?}: {} MB, {gone} bytes fewer for the cache, {given} given back",
                memory() >> 20
            );
            assert!(given > 0 && gone > 1 << 20);
            assert!(memory() + gone <= full + SLACK, "{} of {full} are left, and {gone} went", memory());
        }
        // It stays small while tokens are computed.
        (0..4).for_each(|_| fill());
        let gone = full_cache - cache();
        assert!(memory() + gone <= full + SLACK, "{} of {full} are in use, and {gone} went", memory());
        assert!(gone > 16 << 20, "the cache was {full_cache} bytes and is {}", cache());
        // And it is used again, up to the budget.
        engine.trim(TrimLevel::Normal).unwrap();
        (0..4).for_each(|_| fill());
        assert!(memory() <= full + SLACK && memory() + SLACK >= full, "{} of {full}", memory());
    }
    let stats = engine.stream_stats().unwrap();
    assert!(stats.bytes_given_back > 40 << 20 && stats.resizes == 12 && stats.evictions > 0);
}
