//! Gates 180, 181 and 197 to 199: models of attention and routed experts that have no other part of their own.

use dollop::convert::{ConvertOptions, convert};
use dollop::{CancelToken, Engine, EngineOptions, Error, Level, Precision, SessionOptions};
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
    assert!(files >= 16, "{files} GGUF files");
}

/// Gate 197: narrow experts that do not match the experts they are shared by are refused by name.
#[test]
fn narrow_experts_belong_to_experts() {
    let opened = |change: &dyn Fn(&mut Tiny)| {
        let mut tiny = Tiny::load("grovemoe");
        change(&mut tiny);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        Engine::open_reference(folder.path(), &EngineOptions::default()).map(drop)
    };
    opened(&|_| ()).unwrap();
    let cut = |part: &str, side: usize| {
        let text = opened(&|tiny| {
            for (name, shape, data) in &mut tiny.tensors {
                if name.contains("chunk_experts") && name.contains(part) {
                    shape[side] /= 2;
                    data.truncate(data.len() / 2);
                }
            }
        });
        text.unwrap_err().to_string()
    };
    for (part, side) in [("up", 1), ("gate", 1), ("down", 0)] {
        let text = cut(part, side);
        assert!(text.contains(&format!("ffn_{part}_chexps")) && text.contains("does not match"), "{text}");
    }
    // Gates narrower than ups.
    assert!(cut("gate", 0).contains("ffn_gate_exps"));
    let text = opened(&|tiny| tiny.tensors.retain(|t| !t.0.contains("chunk_experts.3"))).unwrap_err();
    assert!(text.to_string().contains("chexps"), "{text}");
    let text = opened(&|tiny| tiny.tensors.retain(|t| !t.0.contains("mlp.experts"))).unwrap_err();
    assert!(text.to_string().contains("there are no experts for it"), "{text}");
}

/// Gate 198: with frequencies of LongRoPE a context ends where its extension begins.
#[test]
fn contexts_of_longrope_end_before_the_extension() {
    for (name, context) in [("phimoe", 96), ("phimoe-plain", 128)] {
        let (_folder, path) = converted(name);
        let engine = Engine::open(&path, &EngineOptions::default()).unwrap();
        assert_eq!(engine.info().context, context, "{name}");
    }
}

/// Gate 199: a router that reads its layer's input has the experts read while tokens are mixed.
#[test]
fn experts_known_early_are_read_ahead() {
    for (name, early) in [("smallthinker", true), ("grovemoe", false)] {
        let (_folder, path) = converted(name);
        let options = EngineOptions::default().with_threads(2).with_precision(Precision::Exact(Level::B4));
        let Err(Error::Budget { smallest, .. }) = Engine::plan(&path, &options.clone().with_memory(1)) else {
            panic!("a budget of one byte fits")
        };
        let engine = Engine::open(&path, &options.with_memory(smallest)).unwrap();
        let mut session = engine.session(SessionOptions::default().with_chunk(16)).unwrap();
        ids(64).into_iter().for_each(|id| drop(session.logits(&[id]).unwrap()));
        let stats = engine.stream_stats().unwrap();
        assert!(stats.bytes_wanted + stats.bytes_ahead > 0, "{name}: {stats:?}");
        assert_eq!(stats.bytes_ahead > 0, early, "{name}: {stats:?}");
    }
}
