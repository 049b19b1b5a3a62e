//! Gates 113 and 115 to 118: models whose layers are gated delta nets and gated attention.

use dollop::convert::source::Source;
use dollop::convert::{ConvertOptions, convert};
use dollop::internal::format::{Gguf, Value};
use dollop::{BackendChoice, CancelToken, Engine, EngineOptions, Session, SessionOptions};
use dollop_tests::tiny::{self, Tiny, converted, ids};
use dollop_tests::{assert_streamed_as_resident, golden, has_gpu};
use serde_json::Value as Json;
use std::path::Path;

/// Models with routed experts.
const ROUTED: [&str; 10] = [
    "qwen3next",
    "qwen35moe",
    "qwen35moe-published",
    "kimi-linear",
    "kimi-linear-resaved",
    "bailingmoe3",
    "bailingmoe3-resaved",
    "granitehybrid",
    "nemotronh",
    "nemotronh-groups",
];

/// Every golden with such layers.
fn names() -> Vec<String> {
    let all = tiny::names().into_iter();
    let families = ["qwen35", "qwen3next", "kimi-linear", "bailingmoe3", "granitehybrid", "nemotronh"];
    let names: Vec<_> = all.filter(|n| families.iter().any(|f| n.starts_with(f))).collect();
    assert!(names.len() >= 12, "{names:?}");
    names
}

/// Gate 113: GGUF files of these and other tests equal those of llama.cpp's converter: every key, and every
/// tensor's name, shape and bytes.
#[test]
fn gguf_files_are_those_of_llama_cpps_converter() {
    let (mut files, mut tensors) = (0, 0);
    for name in tiny::names() {
        let Ok(text) = std::fs::read_to_string(golden("models").join(format!("{name}.gguf.json"))) else {
            continue;
        };
        let want: Json = serde_json::from_str(&text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        Tiny::load(&name).write_gguf(&path);
        let bytes = std::fs::read(&path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let architecture = gguf.metadata.require_str("general.architecture").unwrap();
        assert_eq!(architecture, want["architecture"].as_str().unwrap());
        for (key, value) in want["keys"].as_object().unwrap() {
            let got = gguf.metadata.get(key).unwrap_or_else(|| panic!("{name}: no key {key}"));
            assert!(same(got, value), "{name}: {key} is {got:?}, not {value}");
        }
        let own = gguf.metadata.iter().filter(|(key, _)| key.starts_with(architecture)).count();
        assert_eq!(own, want["keys"].as_object().unwrap().len(), "{name}: keys that the converter has not");
        let mut got: Vec<_> = gguf.tensors.iter().collect();
        got.sort_by(|a, b| a.name.cmp(&b.name));
        let want = want["tensors"].as_array().unwrap();
        assert_eq!(got.len(), want.len(), "{name}");
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.name, want[0].as_str().unwrap(), "{name}");
            let shape: Vec<u64> =
                want[1].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap()).collect();
            assert_eq!(got.shape, shape, "{name}: {}", got.name);
            let bytes = &bytes[got.offset as usize..][..got.n_bytes as usize];
            match &want[2] {
                Json::Array(values) => {
                    let got = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
                    let close =
                        |(got, want): (f32, &Json)| (f64::from(got) - want.as_f64().unwrap()).abs() < 1e-6;
                    assert!(got.zip(values).all(close), "{name}");
                }
                sum => assert_eq!(
                    u64::from(crc32fast::hash(bytes)),
                    sum.as_u64().unwrap(),
                    "{name}: {}",
                    got.name
                ),
            }
            tensors += 1;
        }
        files += 1;
    }
    assert!(files >= 33 && tensors > 1600, "{files} files, {tensors} tensors");
}

/// Whether a key's value equals the JSON value.
fn same(got: &Value, want: &Json) -> bool {
    match (got, want) {
        (Value::Unsigned(got, _), _) => want.as_u64() == Some(*got),
        (Value::Bool(got), _) => want.as_bool() == Some(*got),
        (Value::String(got), _) => want.as_str() == Some(got),
        (Value::F32(got), _) => want.as_f64().is_some_and(|want| want as f32 == *got),
        (got, want) => {
            let got: String = format!("{got:?}").to_lowercase();
            let list = got.split_once('[').map_or("", |(_, list)| list).replace([' ', ')', ']'], "");
            want.as_array()
                .is_some_and(|all| all.iter().map(Json::to_string).collect::<Vec<_>>().join(",") == list)
        }
    }
}

fn options() -> EngineOptions {
    EngineOptions::default().with_threads(2)
}

fn session(engine: &Engine, chunk: usize) -> Session {
    engine.session(SessionOptions::default().with_chunk(chunk)).unwrap()
}

/// Gate 115: streamed logits equal resident ones, byte for byte, however the tokens are split.
#[test]
fn streamed_logits_are_resident_ones() {
    for name in ROUTED {
        let (_folder, path) = converted(name);
        assert_streamed_as_resident(&path, &ids(96), name);
    }
}

/// Gate 115 for conversions: stored norms, decays and heads have the source's meaning, from a folder or a GGUF file.
#[test]
fn converted_models_say_nearly_the_same() {
    for name in names().iter().filter(|name| *name != "qwen3next-mlp-only") {
        let tiny = Tiny::load(name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let gguf = folder.path().join("model.gguf");
        tiny.write_gguf(&gguf);
        for source in [folder.path(), &gguf] {
            let path = folder.path().join("dollop.gguf");
            convert(source, &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
            let engine = Engine::open(&path, &options()).unwrap();
            let got = session(&engine, 32).logits(&tiny.tokens).unwrap();
            let error = tiny.error(&got);
            // With routers, some experts differ; with groups, more.
            let bound = match &**name {
                "bailingmoe3" => 0.25,
                name if ROUTED.contains(&name) => 0.1,
                _ => 0.01,
            };
            assert!(error < bound, "{name}, {}: {error}", source.display());
        }
    }
}

/// A folder with a model whose context has this length.
fn roomy(name: &str, context: usize) -> tempfile::TempDir {
    let mut tiny = Tiny::load(name);
    let numbers = match tiny.config.get_mut("text_config") {
        Some(text) => text,
        None => &mut tiny.config,
    };
    let key = if name == "kimi-linear" { "model_max_length" } else { "max_position_embeddings" };
    numbers[key] = context.into();
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    folder
}

/// Gate 116: a rewound or forked session equals one without a break. Recomputation begins at a mark, not at
/// the beginning.
#[test]
fn sessions_go_back_to_marks() {
    const LENGTH: usize = 1500;
    for name in ["qwen35moe", "qwen3next", "kimi-linear", "bailingmoe3", "granitehybrid", "nemotronh"] {
        let folder = roomy(name, 2048);
        let engine = Engine::open_reference(folder.path(), &options().with_context(2048)).unwrap();
        let ids = ids(LENGTH + 40);
        let last = |session: &mut Session, ids: &[u32]| session.last_logits(ids).unwrap();
        let mut one = session(&engine, 64);
        last(&mut one, &ids[..LENGTH]);
        // Token by token and in other chunks: the same bits.
        let mut other = session(&engine, 100);
        last(&mut other, &ids[..700]);
        ids[700..720].iter().for_each(|id| drop(last(&mut other, &[*id])));
        last(&mut other, &ids[720..LENGTH]);
        let want: Vec<_> = ids[LENGTH..].iter().map(|id| last(&mut one, &[*id])).collect();
        assert!(last(&mut other, &ids[LENGTH..LENGTH + 1]) == want[0], "{name}: another cut, other bits");
        // Sixteen new tokens count as sixteen.
        let before = one.processed_tokens();
        last(&mut one, &ids[..16]);
        assert_eq!(one.processed_tokens() - before, 16, "{name}");
        // Back to the middle: fewer tokens are recomputed than lie between marks.
        let before = one.processed_tokens();
        let reached = one.rewind(LENGTH);
        assert!(reached > LENGTH - 600 && reached <= LENGTH, "{name}: back to {reached}");
        assert!(last(&mut one, &ids[LENGTH..LENGTH + 1]) == want[0], "{name}: other logits after going back");
        let again = one.processed_tokens() - before;
        assert_eq!(again as usize, LENGTH + 1 - reached, "{name}: read again");
        // A fork also continues, and both are independent.
        let mut fork = one.fork().unwrap();
        for session in [&mut fork, &mut one] {
            let before = session.processed_tokens();
            assert!(last(session, &ids[LENGTH + 1..LENGTH + 2]) == want[1], "{name}: a copy says otherwise");
            assert_eq!(session.processed_tokens() - before, 1, "{name}");
        }
    }
}

/// Gate 116 for files: a restored session equals the saved one, and can be rewound as far.
#[test]
fn saved_sessions_go_on() {
    for name in [
        "qwen35moe",
        "qwen3next",
        "qwen35-grouped",
        "kimi-linear",
        "bailingmoe3",
        "granitehybrid",
        "nemotronh",
    ] {
        let folder = roomy(name, 2048);
        let path = folder.path().join("dollop.gguf");
        convert(folder.path(), &path, &ConvertOptions::default(), &CancelToken::new(), &mut |_| ()).unwrap();
        let engine = Engine::open(&path, &options().with_context(2048)).unwrap();
        let ids = ids(1000);
        let mut one = session(&engine, 64);
        one.last_logits(&ids[..900]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        one.save(file.path()).unwrap();
        let mut restored = engine.load_session(file.path(), SessionOptions::default()).unwrap();
        assert_eq!(restored.processed_tokens(), 0, "{name}");
        for id in &ids[900..910] {
            assert!(restored.last_logits(&[*id]).unwrap() == one.last_logits(&[*id]).unwrap(), "{name}");
        }
        assert_eq!(restored.processed_tokens(), 10, "{name}");
        assert_eq!(restored.rewind(700), one.rewind(700), "{name}: other marks");
        assert!(restored.last_logits(&ids[700..720]).unwrap() == one.last_logits(&ids[700..720]).unwrap());
        assert!(restored.processed_tokens() < 10 + 20 + 512, "{name}: {}", restored.processed_tokens());
    }
}

/// Gate 117: tensors of images and draft heads are left out by name, in any place, and change nothing.
#[test]
fn what_is_left_out_is_named() {
    let parts = |path: &Path| {
        let source = Source::open(path).unwrap();
        source.metadata().strings("dollop.source.left_out").unwrap().unwrap_or_default().join(" ")
    };
    for (name, left_out) in [("qwen35moe-published", "mtp (5) visual (21)"), ("bailingmoe3", "nextn (5)")] {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::load(name);
        tiny.write_folder(folder.path());
        assert_eq!(parts(folder.path()), left_out);
        // A GGUF file with a draft head: one block more than there are layers.
        let gguf = folder.path().join("draft.gguf");
        tiny.write_gguf_with_draft(&gguf);
        assert_eq!(parts(&gguf), "nextn (3)");
        let engine = Engine::open_reference(&gguf, &options()).unwrap();
        let got = session(&engine, 128).logits(&tiny.tokens).unwrap();
        tiny.assert_near(&got, 1e-4, "with a draft head");
    }
}

/// Gate 118: the same logits on a GPU: at once, in pieces and token by token; sessions can be rewound there, too.
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
        let mut one = session(&engine, 16);
        one.last_logits(&tiny.tokens[..32]).unwrap();
        let want = one.last_logits(&tiny.tokens[32..40]).unwrap();
        assert_eq!(one.rewind(32), 32, "{name}: where a prompt ends is a mark");
        assert!(one.last_logits(&tiny.tokens[32..40]).unwrap() == want, "{name}: other logits");
    }
}
