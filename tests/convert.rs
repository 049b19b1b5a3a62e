//! Gate 6: conversion: the same bytes for any number of threads, no file under the final name after a
//! failure, unchanged sources open at once, and every bad source is refused with a clear message.

use dollop::Level;
use dollop::convert::{ConvertOptions, GroupParams, Purpose, cached, convert};
use dollop::{CancelToken, Engine, EngineOptions, Error, SessionOptions, inspect};
use dollop_tests::set;
use dollop_tests::tiny::Tiny;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

fn folder_of(name: &str) -> (tempfile::TempDir, Tiny) {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Tiny::load(name);
    tiny.write_folder(folder.path());
    (folder, tiny)
}

fn run(source: &Path, out: &Path, options: &ConvertOptions) -> dollop::Result<dollop::convert::Report> {
    convert(source, out, options, &CancelToken::new(), &mut |_| ())
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_conversion_depends_on_its_source_alone() {
    let (folder, tiny) = folder_of("qwen2moe-sparse-step");
    let gguf = folder.path().join("source.gguf");
    tiny.write_gguf(&gguf);
    let out = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (i, threads) in [1, 2, 5].into_iter().enumerate() {
        let path = out.path().join(format!("{i}.gguf"));
        let options = ConvertOptions::default().with_threads(threads);
        run(folder.path(), &path, &options).unwrap();
        results.push(fs::read(&path).unwrap());
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]), "threads changed the file");

    // The folder and a GGUF of the same weights are the same model.
    let path = out.path().join("gguf.gguf");
    run(&gguf, &path, &ConvertOptions::default()).unwrap();
    let logits = |p: &Path| {
        let engine = Engine::open(p, &EngineOptions::default()).unwrap();
        engine.session(SessionOptions::default()).unwrap().logits(&tiny.tokens).unwrap()
    };
    assert!(logits(&path) == logits(&out.path().join("0.gguf")));
    inspect::verify(&path).unwrap();
    let i = inspect::inspect(&path).unwrap();
    assert_eq!((i.kind, i.planes.len(), i.experts), (inspect::Kind::Dollop, 5, 8));
}

#[test]
fn narrow_parameters_make_a_smaller_file_of_the_same_model() {
    let (folder, tiny) = folder_of("qwen2moe-sparse-step");
    let out = tempfile::tempdir().unwrap();
    let made = |name: &str, params, threads| {
        let path = out.path().join(name);
        let options = ConvertOptions::default().with_threads(threads);
        run(folder.path(), &path, &set!(ConvertOptions { params, ..options })).unwrap();
        path
    };
    let (wide, narrow) = (made("w", GroupParams::Wide, 2), made("n", GroupParams::Narrow, 1));
    assert!(fs::read(&narrow).unwrap() == fs::read(made("m", GroupParams::Narrow, 5)).unwrap());
    inspect::verify(&narrow).unwrap();
    let plane_0 = |path: &Path| inspect::inspect(path).unwrap().planes[0].bytes;
    assert!(plane_0(&narrow) < plane_0(&wide));
    let logits = |path: &Path| -> dollop::Result<Vec<f32>> {
        let engine = Engine::open(path, &EngineOptions::default())?;
        Ok(engine.session(SessionOptions::default())?.logits(&tiny.tokens)?.concat())
    };
    let (want, got) = (logits(&wide).unwrap(), logits(&narrow).unwrap());
    let size = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let (error, all) =
        (size(&mut want.iter().zip(&got).map(|(a, b)| a - b)), size(&mut want.iter().copied()));
    assert!(error > 0.0 && error < 0.1 * all, "{error} of {all}");

    // A file without narrow parameters is of version 2, which has no such attribute.
    let behind =
        |bytes: &[u8], key: &[u8]| Some(bytes.windows(key.len()).position(|b| b == key)? + key.len());
    let (version, params) = (b"dollop.version", b"dollop.matrix.params");
    let plain = fs::read(&wide).unwrap();
    assert_eq!((plain[behind(&plain, version).unwrap() + 4], behind(&plain, params)), (2, None));
    let patched = |from: &Path, key: &[u8], at: usize, value: u8| {
        let mut bytes = fs::read(from).unwrap();
        let place = behind(&bytes, key).unwrap() + at;
        bytes[place] = value;
        fs::write(out.path().join("p"), bytes).unwrap();
        logits(&out.path().join("p")).unwrap_err().to_string()
    };
    let newer = patched(&wide, version, 4, 6);
    assert!(newer.contains("version 6"), "{newer}");
    let unknown = patched(&narrow, params, 16, 7);
    assert!(unknown.contains("params") && unknown.contains('7'), "{unknown}");
}

#[test]
fn a_flipped_bit_in_the_weights_is_found_by_verify() {
    let (folder, _) = folder_of("olmoe");
    let out = folder.path().join("out.gguf");
    run(folder.path(), &out, &ConvertOptions::default()).unwrap();
    let mut bytes = fs::read(&out).unwrap();
    let directory = dollop::internal::format::dollop::Directory::parse(&bytes).unwrap();
    let slab = directory.gguf.tensors.iter().find(|t| t.name.contains("ffn_exps.plane3")).unwrap();
    bytes[slab.offset as usize + 9] ^= 4;
    fs::write(&out, &bytes).unwrap();
    let text = inspect::verify(&out).unwrap_err().to_string();
    assert!(text.contains("ffn_exps.plane3"), "{text}");
}

#[test]
fn nothing_is_left_under_the_final_name_after_a_failure() {
    let (folder, _) = folder_of("mixtral");
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");

    let cancel = CancelToken::new();
    let mut steps = 0;
    let result = convert(folder.path(), &target, &ConvertOptions::default(), &cancel, &mut |_| {
        steps += 1;
        if steps == 3 {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)) && steps == 3, "{result:?} after {steps}");
    assert!(files(out.path()).is_empty(), "{:?}", files(out.path()));

    // A weight that cannot be encoded is found only half way; an older file stays unchanged.
    fs::write(&target, "older").unwrap();
    let model = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&model, bytes).unwrap();
    let text = run(folder.path(), &target, &ConvertOptions::default()).unwrap_err().to_string();
    for word in ["model.safetensors", "tensor", "not a number"] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(files(out.path()), ["m.gguf"]);
    assert_eq!(fs::read_to_string(&target).unwrap(), "older");

    // The next conversion removes the partial file of a killed one.
    fs::write(out.path().join("m.gguf.partial-4294967294"), "x").unwrap();
    let (good, _) = folder_of("mixtral");
    run(good.path(), &target, &ConvertOptions::default()).unwrap();
    assert_eq!(files(out.path()), ["m.gguf"]);
}

#[test]
fn an_unchanged_source_is_converted_once() {
    let (folder, _) = folder_of("qwen3moe");
    let cache = tempfile::tempdir().unwrap();
    let mut work = 0;
    let mut open = |options: &ConvertOptions| {
        cached(folder.path(), cache.path(), options, Purpose::Weights, &CancelToken::new(), &mut |_| {
            work += 1
        })
        .unwrap();
        std::mem::take(&mut work)
    };
    let options = ConvertOptions::default();
    assert!(open(&options) > 0);
    assert_eq!(open(&options), 0, "converted twice");
    let other = ConvertOptions::default().with_max_level(Level::B4);
    assert!(open(&other) > 0, "other options are another file");
    assert_eq!(files(cache.path()).len(), 1, "the older file of the same source stays");
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    assert!(open(&other) > 0, "a changed source is converted again");
}

/// Gate 90.
#[test]
fn a_foreign_model_opens_like_its_conversion() {
    let (folder, tiny) = folder_of("qwen3moe");
    let gguf = folder.path().join("m.gguf");
    tiny.write_gguf(&gguf);
    let cache = tempfile::tempdir().unwrap();
    let none = EngineOptions::default();
    let cached = none.clone().with_cache(cache.path().join("models"));
    let logits =
        |engine: Engine| engine.session(SessionOptions::default()).unwrap().logits(&tiny.tokens).unwrap();
    let target = folder.path().join("own.gguf");
    run(folder.path(), &target, &ConvertOptions::default()).unwrap();
    let want = logits(Engine::open(&target, &none).unwrap());

    for source in [folder.path(), &gguf] {
        let text = Engine::open(source, &none).err().unwrap().to_string();
        assert!(text.contains("no cache folder") && text.contains(source.to_str().unwrap()), "{text}");
        // The first progress callback cancels it, and no file is left.
        let mut heard = 0;
        let ended = Engine::open_with(source, &cached, &mut |_| {
            heard += 1;
            ControlFlow::Break(())
        });
        assert!(matches!(ended, Err(Error::Cancelled)) && heard == 1, "heard {heard} times");
        let name = dollop::convert::model_name(source).unwrap().into_string().unwrap();
        let left = files(&cache.path().join("models"));
        assert!(!left.iter().any(|f| f.starts_with(&name) && f.ends_with(".gguf")), "{left:?}");

        let mut done = Vec::new();
        let mut progress = |p: dollop::Progress| {
            done.push((p.done, p.total));
            ControlFlow::Continue(())
        };
        let plan = Engine::plan_with(source, &cached, &mut progress).unwrap();
        assert!(plan.dense_bytes > 0 && done.is_sorted(), "{done:?}");
        assert_eq!(done.last().map(|(done, total)| done == total), Some(true), "{done:?}");
        let mut again = |_| panic!("converted twice");
        let engine = Engine::open_with(source, &cached, &mut again).unwrap();
        assert!(logits(engine) == want, "{}", source.display());
        let file = Engine::prepare(source, &cached, &mut again).unwrap();
        assert!(inspect::kind(&file).unwrap() == inspect::Kind::Dollop && file.starts_with(cache.path()));
    }
    let missing = Engine::open(folder.path().join("nothing"), &cached).err().unwrap();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    let chat = set!(EngineOptions { purpose: Purpose::Chat, ..cached });
    fs::remove_dir_all(cache.path().join("models")).unwrap();
    let text = Engine::open(folder.path(), &chat).err().unwrap().to_string();
    assert!(text.contains("tokenizer"), "{text}");
}

#[test]
fn bad_sources_are_refused_with_file_field_and_remedy() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("out.gguf");
    let refuse = |what: &str, change: &dyn Fn(&Path), words: &[&str]| {
        let (folder, tiny) = folder_of("olmoe");
        tiny.write_gguf(&folder.path().join("m.gguf"));
        change(folder.path());
        let source = if words.contains(&"m.gguf") {
            folder.path().join("m.gguf")
        } else {
            folder.path().to_path_buf()
        };
        let text = run(&source, &target, &ConvertOptions::default()).unwrap_err().to_string();
        for word in words {
            assert!(text.contains(word), "{what}: `{text}` does not say `{word}`");
        }
        assert!(!text.contains('\n') && files(out.path()).is_empty(), "{what}: {text}");
    };
    let edit = |file: &'static str, from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            assert!(text.contains(from), "{file} has no {from}");
            fs::write(folder.join(file), text.replacen(from, to, 1)).unwrap();
        }
    };
    let cut = |n: usize| {
        move |folder: &Path| {
            let bytes = fs::read(folder.join("m.gguf")).unwrap();
            fs::write(folder.join("m.gguf"), &bytes[..bytes.len() - n]).unwrap();
        }
    };
    refuse(
        "unknown family",
        &edit("config.json", "\"olmoe\"", "\"mamba\""),
        &["mamba", "olmoe", "qwen3_moe"],
    );
    refuse("no JSON", &edit("config.json", "{", "["), &["config.json"]);
    refuse(
        "missing key",
        &edit("config.json", "\"hidden_size\"", "\"hidden_sizes\""),
        &["hidden_size", "missing"],
    );
    refuse(
        "another width",
        &edit("config.json", "\"hidden_size\":64", "\"hidden_size\":128"),
        &["shape", "config"],
    );
    refuse(
        "absurd layers",
        &edit("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":99999999"),
        &["num_hidden_layers"],
    );
    refuse(
        "more layers than tensors",
        &edit("config.json", "\"num_hidden_layers\":2", "\"num_hidden_layers\":3"),
        &["blk.2", "no such tensor"],
    );
    refuse(
        "another width of the experts",
        &edit("config.json", "\"intermediate_size\":96", "\"intermediate_size\":4096"),
        &["ffn_up_exps", "4096"],
    );
    refuse("no weights", &|f| fs::remove_file(f.join("model.safetensors")).unwrap(), &["model.safetensors"]);
    refuse("no config", &|f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json"]);
    refuse("cut short", &cut(100), &["m.gguf", "past the end", "download"]);
    refuse("empty", &|f| fs::write(f.join("m.gguf"), "").unwrap(), &["m.gguf", "empty"]);
    refuse(
        "another format",
        &|f| fs::write(f.join("m.gguf"), "PK\x03\x04 not a model at all").unwrap(),
        &["m.gguf", "GGUF"],
    );
    refuse(
        "a folder in place of a file",
        &|f| {
            fs::remove_file(f.join("m.gguf")).unwrap();
            fs::create_dir(f.join("m.gguf")).unwrap();
        },
        &["m.gguf", "config.json"],
    );
}
