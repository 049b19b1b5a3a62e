//! Helpers shared by several gates: the tiny models of `goldens/models`, rebuilt from their generator.

use dollop::internal::kernels::cpu::Isa;
use dollop::sampler::{Sampler, Sampling};
use dollop::{Engine, EngineOptions, Error, Level, Precision, Session, SessionOptions};
use std::path::{Path, PathBuf};

pub mod chance;
mod gemma;
mod gptoss;
mod held;
mod hybrid;
mod latent;
pub mod mutants;
pub mod routed;
mod short;
pub mod talker;
pub mod tiny;
pub mod uneven;

pub use held::HeldFile;
pub use short::short_model;

/// `EngineOptions { threads: 2, ..base }` for non-exhaustive structs, for which other crates cannot use this syntax.
#[macro_export]
macro_rules! set {
    ($of:ident { $($field:ident $(: $value:expr)?,)* .. $base:expr }) => {{
        let mut all: $of = $base;
        $($crate::set!(all, $field $(, $value)?);)*
        all
    }};
    ($all:ident, $field:ident) => { $all.$field = $field };
    ($all:ident, $field:ident, $value:expr) => { $all.$field = $value };
}

/// Tokens that `sampling` chooses after `prompt` from whole logits: the expected result of a generation that
/// reads back only the most likely ones.
pub fn chosen_among_all(session: &mut Session, prompt: &[u32], sampling: &Sampling, n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling.clone()).expect("the numbers make sense");
    prompt.iter().for_each(|&id| sampler.accept(id));
    let mut tokens = Vec::new();
    let mut next = prompt.to_vec();
    while tokens.len() < n {
        let mut logits =
            session.logits(&next).expect("the context is long enough").pop().expect("of the last");
        let id = sampler.sample(&mut logits);
        sampler.accept(id);
        tokens.push(id);
        next = vec![id];
    }
    tokens
}

/// Asserts that a model's logits of `ids`, streamed with the smallest budget and for any split of the tokens,
/// equal those of the resident model, byte for byte.
///
/// `ids` are whole pieces of sixteen: some processors compute fewer tokens in another precision.
pub fn assert_streamed_as_resident(path: &Path, ids: &[u32], name: &str) {
    assert!(!ids.is_empty() && ids.len().is_multiple_of(32));
    let exact = EngineOptions::default().with_threads(2).with_precision(Precision::Exact(Level::B4));
    let logits = |engine: &Engine, chunk: usize| {
        engine.session(SessionOptions::default().with_chunk(chunk)).unwrap().logits(ids).unwrap()
    };
    let want = logits(&Engine::open(path, &exact).unwrap(), 32);
    let Err(Error::Budget { smallest, .. }) = Engine::plan(path, &exact.clone().with_memory(1)) else {
        panic!("a budget of one byte fits")
    };
    let streamed = Engine::open(path, &exact.with_memory(smallest)).unwrap();
    for chunk in [16, 32] {
        assert!(logits(&streamed, chunk) == want, "{name}, chunk {chunk}");
    }
    let stats = streamed.stream_stats().expect("it streams");
    assert!(stats.bytes_wanted > 0 && stats.upgrades > 0 && stats.evictions > 0, "{name}: {stats:?}");
}

/// Below this margin, the two best logits are too close for backends, which add in different orders, to agree
/// on the better one.
pub const MARGIN: f32 = 0.02;

/// The most likely token after `tokens`, which are appended to the session, and its margin over the next one.
pub fn best_and_margin(session: &mut Session, tokens: &[u32]) -> (u32, f32) {
    match session.best(tokens, 2).expect("the context is long enough")[..] {
        [(id, best), (_, next)] => (id, best - next),
        ref other => panic!("two numbers among the logits: {other:?}"),
    }
}

/// Options without a budget, with one added for all experts at 3 bits and about `share` of their fourth bits.
pub fn with_refinements(path: &Path, mut o: EngineOptions, share: f64) -> EngineOptions {
    let plan = |memory| Engine::plan(path, &o.clone().with_memory(memory));
    let Err(Error::Budget { smallest, .. }) = plan(1) else { panic!("planned for one byte") };
    let plan = |memory| plan(memory).expect("a budget that works");
    let small = plan(smallest);
    let at =
        |bits: u8| small.levels.iter().find(|l| l.bits == bits).expect("a level that is stored").expert_bytes;
    let all = small.total_bytes() - small.expert_bytes - small.staging_bytes + at(3);
    let next = at(4) - at(3);
    // Half of the fourth bits pays for some of them, and for the staging memory.
    let staging = plan(all + next / 2).refinements.expect("some are refined").staging_bytes;
    o.memory = Some(all + staging + (share * next as f64) as u64);
    o
}

/// Options with the smallest budget that works, plus this many bytes.
pub fn with_budget(path: &Path, mut o: EngineOptions, more: u64) -> EngineOptions {
    match Engine::plan(path, &o.clone().with_memory(1)) {
        Err(Error::Budget { smallest, .. }) => o.memory = Some(smallest + more),
        other => panic!("planned for one byte: {other:?}"),
    }
    o
}

/// The best instruction set whose products for one token equal those among many: not AMX, which uses bfloat16 for many.
pub fn even_isa() -> Option<Isa> {
    Isa::available().into_iter().rfind(|isa| isa.to_string() != "amx")
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the clone").to_path_buf()
}

/// A file in `tests/goldens`.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/goldens").join(name)
}

/// The model that comes with Dollop.
pub fn default_model() -> PathBuf {
    root().join("models/smollm2-moe.gguf")
}

/// Whether gates test all cases, as `./check --full` does, or a sample.
pub fn full() -> bool {
    std::env::var_os("DOLLOP_TEST_FULL").is_some()
}

/// The default model if gates test all cases, else [`short_model`].
pub fn test_model() -> PathBuf {
    if full() { default_model() } else { short_model() }
}

/// Whether there is an adapter to test with. If `DOLLOP_TEST_GPU` is set, as `./check` does, there must be one.
#[cfg(feature = "gpu")]
pub fn has_gpu() -> bool {
    let found = dollop::internal::kernels::gpu::adapters().iter().any(|a| a.missing.is_none());
    assert!(
        found || std::env::var_os("DOLLOP_TEST_GPU").is_none(),
        "no adapter: is a Vulkan driver installed?"
    );
    found
}

/// Without GPU support there is no adapter to test with.
#[cfg(not(feature = "gpu"))]
pub fn has_gpu() -> bool {
    false
}
