//! Gates 160 to 165: models whose experts are chosen in groups, by sigmoids with a bias, and attention to a latent.

use dollop::convert::source::Source;
use dollop::convert::{ConvertOptions, convert};
use dollop::{BackendChoice, CancelToken, Engine, EngineOptions, Session, SessionOptions};
use dollop_tests::tiny::{self, Tiny, converted, ids};
use dollop_tests::{assert_streamed_as_resident, has_gpu};

/// Every golden of these families.
fn names() -> Vec<String> {
    let of = |name: &String| name.starts_with("glm4moe") || name.starts_with("deepseek2");
    let names: Vec<_> = tiny::names().into_iter().filter(of).collect();
    assert!(names.len() >= 7, "{names:?}");
    names
}

fn options() -> EngineOptions {
    EngineOptions::default().with_threads(2)
}

fn session(engine: &Engine, chunk: usize) -> Session {
    engine.session(SessionOptions::default().with_chunk(chunk)).unwrap()
}

/// Gate 160: streamed logits equal resident ones, byte for byte, however the tokens are split.
#[test]
fn streamed_logits_are_resident_ones() {
    for name in names() {
        let (_folder, path) = converted(&name);
        assert_streamed_as_resident(&path, &ids(96), &name);
    }
}

/// Gate 161: a draft head after the layers is left out by name, in a folder and in a GGUF file, and changes nothing.
#[test]
fn draft_heads_are_left_out() {
    for name in ["glm4moe", "deepseek2-v3"] {
        let tiny = Tiny::load(name);
        draft_head_of(&tiny);
    }
}

fn draft_head_of(tiny: &Tiny) {
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let gguf = folder.path().join("draft.gguf");
    tiny.write_gguf_with_draft(&gguf);
    for (path, parts) in [(folder.path(), "nextn (5)"), (&gguf, "nextn (3)")] {
        let source = Source::open(path).unwrap();
        assert_eq!(source.metadata().strings("dollop.source.left_out").unwrap().unwrap(), [parts]);
        let engine = Engine::open_reference(path, &options()).unwrap();
        let got = session(&engine, 128).logits(&tiny.tokens).unwrap();
        tiny.assert_near(&got, 1e-4, &path.display().to_string());
    }
}

/// Gate 162: the same logits on a GPU: at once, in pieces and token by token.
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
            tiny.assert_near(&got, 2e-3, &format!("chunk {chunk}"));
        }
    }
}

/// Gate 163: old files, from before cached latents, have one tensor for heads' keys and values: same results.
#[test]
fn old_files_say_the_same() {
    let mut turned = 0;
    for name in names().iter().filter(|n| n.starts_with("deepseek2") && *n != "deepseek2-halves") {
        let tiny = Tiny::load(name);
        let folder = tempfile::tempdir().unwrap();
        let gguf = folder.path().join("old.gguf");
        tiny.write_old_gguf(&gguf);
        let source = Source::open(&gguf).unwrap();
        turned += source.names().filter(|n| n.ends_with("attn_k_b.weight")).count();
        let engine = Engine::open_reference(&gguf, &options()).unwrap();
        let got = session(&engine, 128).logits(&tiny.tokens).unwrap();
        tiny.assert_near(&got, 1e-4, "old file");
    }
    assert_eq!(turned, 12, "layers whose tensors were taken apart");
}

/// Gate 164: a layer keeps its latent, not keys and values of heads. Saved, restored, rewound and forked
/// sessions equal one without a break.
#[test]
fn sessions_keep_latents() {
    for name in ["deepseek2-lite", "deepseek2-v3"] {
        let folder = tempfile::tempdir().unwrap();
        Tiny::load(name).write_folder(folder.path());
        let path = folder.path().join("dollop.gguf");
        convert(folder.path(), &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
        let kept = |context: usize| {
            let options = options().with_context(context);
            Engine::plan(&path, &options).unwrap().kv_bytes
        };
        // 64 values of a key and 48 of a value in half precision, three layers; heads would have 4 · (48 + 32).
        assert_eq!(kept(128) - kept(64), 64 * 3 * 2 * (64 + 48), "{name}");
        let engine = Engine::open(&path, &options()).unwrap();
        let ids = ids(100);
        let mut one = session(&engine, 32);
        one.last_logits(&ids[..64]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        one.save(file.path()).unwrap();
        let mut fork = one.fork().unwrap();
        let want: Vec<_> = ids[64..80].iter().map(|id| one.last_logits(&[*id]).unwrap()).collect();
        let mut restored = engine.load_session(file.path(), SessionOptions::default()).unwrap();
        for session in [&mut fork, &mut restored] {
            for (id, want) in ids[64..80].iter().zip(&want) {
                assert!(session.last_logits(&[*id]).unwrap() == *want, "{name}");
            }
            assert_eq!(session.rewind(70), 70, "{name}: nothing is read again");
            assert!(session.last_logits(&ids[70..71]).unwrap() == want[6], "{name}: gone back");
        }
        assert_eq!(restored.processed_tokens(), 17, "{name}");
    }
}

/// Gate 166: logits of a converted model, from a folder or a GGUF file, are close to the source's.
#[test]
fn converted_models_say_nearly_the_same() {
    for name in names().iter().filter(|name| *name != "deepseek2-halves") {
        let tiny = Tiny::load(name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let (gguf, old) = (folder.path().join("model.gguf"), folder.path().join("old.gguf"));
        tiny.write_gguf(&gguf);
        let mut sources = vec![folder.path(), &gguf];
        if name.starts_with("deepseek2") {
            tiny.write_old_gguf(&old);
            sources.push(&old);
        }
        for source in sources {
            let path = folder.path().join("dollop.gguf");
            convert(source, &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
            let engine = Engine::open(&path, &options()).unwrap();
            let got = session(&engine, 32).logits(&tiny.tokens).unwrap();
            let error = tiny.error(&got);
            // Some chosen experts differ.
            assert!(error < 0.15, "{name}, {}: {error}", source.display());
        }
    }
}
