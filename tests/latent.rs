//! Gates 160 to 162: models whose experts are chosen in groups, by sigmoids and a bias.

use dollop::convert::source::Source;
use dollop::convert::{ConvertOptions, convert};
use dollop::{
    BackendChoice, CancelToken, Engine, EngineOptions, Error, Level, Precision, Session, SessionOptions,
};
use dollop_tests::has_gpu;
use dollop_tests::tiny::{self, Tiny};

/// Every golden of these families.
fn names() -> Vec<String> {
    let names: Vec<_> = tiny::names().into_iter().filter(|n| n.starts_with("glm4moe")).collect();
    assert!(names.len() >= 2, "{names:?}");
    names
}

fn options() -> EngineOptions {
    EngineOptions::default().with_threads(2)
}

fn session(engine: &Engine, chunk: usize) -> Session {
    engine.session(SessionOptions::default().with_chunk(chunk)).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (i.wrapping_mul(2_654_435_761) >> 9) % 250).collect()
}

/// Gate 160: streamed logits are resident ones, byte for byte, however the tokens are cut.
#[test]
fn streamed_logits_are_resident_ones() {
    for name in names() {
        let folder = tempfile::tempdir().unwrap();
        Tiny::load(&name).write_folder(folder.path());
        let path = folder.path().join("dollop.gguf");
        convert(folder.path(), &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
        // Whole pieces of sixteen: on some processors fewer tokens are computed in another precision.
        let ids = ids(96);
        let exact = options().with_precision(Precision::Exact(Level::B4));
        let resident = Engine::open(&path, &exact).unwrap();
        let want = session(&resident, 32).logits(&ids).unwrap();
        let Err(Error::Budget { smallest, .. }) = Engine::plan(&path, &exact.clone().with_memory(1)) else {
            panic!("a budget of one byte fits")
        };
        let streamed = Engine::open(&path, &exact.with_memory(smallest)).unwrap();
        for chunk in [16, 32] {
            assert!(session(&streamed, chunk).logits(&ids).unwrap() == want, "{name}, chunk {chunk}");
        }
        let stats = streamed.stream_stats().expect("it streams");
        assert!(stats.bytes_wanted > 0 && stats.upgrades > 0 && stats.evictions > 0, "{name}: {stats:?}");
    }
}

/// Gate 161: a draft head behind the layers is left out by name, in a folder and in a GGUF file, and changes nothing.
#[test]
fn draft_heads_are_left_out() {
    let tiny = Tiny::load("glm4moe");
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let gguf = folder.path().join("draft.gguf");
    tiny.write_gguf_with_draft(&gguf);
    for (path, parts) in [(folder.path(), "nextn (5)"), (&gguf, "nextn (3)")] {
        let source = Source::open(path).unwrap();
        assert_eq!(source.metadata().strings("dollop.source.left_out").unwrap().unwrap(), [parts]);
        let engine = Engine::open_reference(path, &options()).unwrap();
        let got = session(&engine, 128).logits(&tiny.tokens).unwrap();
        for (got, want) in got.iter().flatten().zip(tiny.logits.iter().flatten()) {
            assert!((got - want).abs() < 1e-4, "{}: {got} instead of {want}", path.display());
        }
    }
}

/// Gate 162: on a GPU the same logits, whole, in pieces and token by token.
#[test]
fn so_they_are_on_a_gpu() {
    if !has_gpu() {
        return;
    }
    let options = options().with_backend(BackendChoice::Gpu(None));
    for name in names() {
        let tiny = Tiny::load(&name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let engine = Engine::open_reference(folder.path(), &options).unwrap();
        for chunk in [1, 7, 128] {
            let got = session(&engine, chunk).logits(&tiny.tokens).unwrap();
            for (got, want) in got.iter().flatten().zip(tiny.logits.iter().flatten()) {
                assert!((got - want).abs() < 2e-3, "{name}, chunk {chunk}: {got} instead of {want}");
            }
        }
    }
}
