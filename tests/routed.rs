//! Gates 180 and 181: models of attention and routed experts that have no other part of their own.

use dollop::convert::{ConvertOptions, convert};
use dollop::{CancelToken, Engine, EngineOptions, SessionOptions};
use dollop_tests::routed::FAMILIES;
use dollop_tests::tiny::{self, Tiny, converted, ids};
use dollop_tests::{assert_streamed_as_resident, golden};

/// Every golden of these families.
fn names() -> Vec<String> {
    let of = |name: &String| FAMILIES.iter().any(|family| name.starts_with(family));
    let names: Vec<_> = tiny::names().into_iter().filter(of).collect();
    assert!(FAMILIES.iter().all(|family| names.iter().filter(|n| n.starts_with(family)).count() >= 2));
    names
}

/// Gate 180: streamed logits are resident ones, byte for byte, however the tokens are cut.
#[test]
fn streamed_logits_are_resident_ones() {
    for name in names() {
        let (_folder, path) = converted(&name);
        assert_streamed_as_resident(&path, &ids(96), &name);
    }
}

/// Gate 181: a converted model, from a folder or a GGUF file, says nearly what the source means.
#[test]
fn converted_models_say_nearly_the_same() {
    let mut files = 0;
    for name in names() {
        let tiny = Tiny::load(&name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let gguf = folder.path().join("model.gguf");
        let mut sources = vec![folder.path()];
        if golden("models").join(format!("{name}.gguf.json")).exists() {
            tiny.write_gguf(&gguf);
            sources.push(&gguf);
            files += 1;
        }
        for source in sources {
            let path = folder.path().join("dollop.gguf");
            convert(source, &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
            let engine = Engine::open(&path, &EngineOptions::default().with_threads(2)).unwrap();
            let mut session = engine.session(SessionOptions::default().with_chunk(32)).unwrap();
            let error = tiny.error(&session.logits(&tiny.tokens).unwrap());
            // Some experts are others.
            assert!(error < 0.15, "{name}, {}: {error}", source.display());
        }
    }
    assert!(files >= 11, "{files} GGUF files");
}
