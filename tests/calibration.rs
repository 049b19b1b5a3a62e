//! Gate 44: importance matrices are read correctly, inputs are measured correctly, and both improve the low
//! levels of a conversion; damaged files are refused.

use dollop::convert::{Calibration, ConvertOptions, Inputs, convert, imatrix};
use dollop::internal::Bytes;
use dollop::internal::Keep;
use dollop::internal::model::Tensors;
use dollop::internal::model::file::NestedFile;
use dollop::internal::quant::{Level, Matrix};
use dollop::{CalibrateOptions, CancelToken, Engine, EngineOptions, Error, SessionOptions};
use dollop_tests::set;
use dollop_tests::tiny::Tiny;
use dollop_tests::{even_isa, golden};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// As in goldens/imatrix/make.py.
const EXPERTS: usize = 8;

fn converted(source: &Path, out: &Path, calibration: Option<Calibration>) -> dollop::convert::Report {
    let options =
        set!(ConvertOptions { calibration: calibration.map(Arc::new), ..ConvertOptions::default() });
    convert(source, out, &options, &CancelToken::new(), &mut |_| ()).unwrap()
}

fn measured(source: &Path, ids: &[u32]) -> Calibration {
    let options = CalibrateOptions::default().with_threads(2);
    dollop::calibrate_tokens(source, ids, "noise", &options, &CancelToken::new(), &mut |_| ()).unwrap()
}

/// Tokens in random order, different for each seed.
fn tokens(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 13) % 250).collect()
}

/// `olmoe` with two properties of trained models: columns that matter far more than others (every ninth weight of the
/// norms before attention and experts is multiplied by 6), and experts whose weights are mostly small.
fn with_outliers(folder: &Path) -> Tiny {
    let mut tiny = Tiny::load("olmoe");
    for (name, _, data) in &mut tiny.tensors {
        if name.contains("input_layernorm") || name.contains("post_attention_layernorm") {
            data.iter_mut().step_by(9).for_each(|w| *w *= 6.0);
        }
        if name.contains(".experts.") {
            let most = data.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            data.iter_mut().for_each(|w| *w *= 2.0 * w.abs() / most);
        }
    }
    tiny.write_folder(folder);
    tiny
}

#[test]
fn both_formats_of_llama_cpp_are_read_alike() {
    let gguf = imatrix::read(&golden("imatrix/small.gguf")).unwrap();
    let dat = imatrix::read(&golden("imatrix/small.dat")).unwrap();
    let said = "importance matrix small.gguf (2 chunks of 512 tokens of wiki.train.raw)";
    assert_eq!(gguf.description(), said);
    assert_eq!(dat.description(), "importance matrix small.dat (2 chunks of wiki.train.raw)");
    assert!(gguf.names().eq(dat.names()));
    // As in make.py: column c of the file's m-th matrix, expert e, has the mean 1 + (7c + 3e + m) % 11.
    for (m, name) in gguf.names().enumerate() {
        let (a, b) = (gguf.get(name).unwrap(), dat.get(name).unwrap());
        let experts = if name.contains("_exps") { EXPERTS } else { 1 };
        assert_eq!((a.counts.len(), b.counts.len()), (experts, 1), "{name}");
        let cols = if name.contains("ffn_down") { 96 } else { 64 };
        assert_eq!((a.sums.len(), b.sums.len()), (cols * experts, cols * experts), "{name}");
        for (i, (a_sum, b_sum)) in a.sums.iter().zip(&b.sums).enumerate() {
            let (e, c) = (i / cols, i % cols);
            let mean = 1.0 + ((7 * c + 3 * e + m) % 11) as f32;
            let tokens = if experts == 1 { 1024.0 } else { 100.0 * e as f32 };
            assert_eq!((a.counts[e], *a_sum), (tokens, mean * tokens), "{name}, column {c} of {e}");
            let mean = if tokens > 0.0 { mean } else { 1.0 };
            assert!((b_sum / b.counts[0] - mean).abs() < 1e-5, "{name}, column {c} of {e}");
        }
    }
}

#[test]
fn an_importance_matrix_is_used_and_named() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::load("olmoe").write_folder(folder.path());
    let at = |name: &str| folder.path().join(name);
    let matrix = || imatrix::read(&golden("imatrix/small.gguf")).unwrap();
    let plain = converted(folder.path(), &at("plain"), None);
    let report = converted(folder.path(), &at("with"), Some(matrix()));
    assert_eq!((plain.calibrated, plain.matrices), (0, report.matrices));
    // All but the embedding and the head.
    assert_eq!(report.calibrated, report.matrices - 2);
    let open = |name: &str| NestedFile::new(Bytes::from(fs::read(at(name)).unwrap())).unwrap();
    let said = |name: &str| {
        let file = open(name);
        file.directory().gguf.metadata.str("dollop.calibration").unwrap().unwrap().to_owned()
    };
    assert_eq!((said("plain").as_str(), said("with").as_str()), ("none", matrix().description()));
    open("with").verify().unwrap();
    let shown = dollop::inspect::inspect(&at("with")).unwrap();
    assert_eq!(shown.calibration.as_deref(), Some(matrix().description()));

    // A matrix of another model, or of no known model.
    let other = tempfile::tempdir().unwrap();
    Tiny::load("qwen3moe").write_folder(other.path());
    let refused = |calibration: Calibration, source: &Path| {
        let options =
            set!(ConvertOptions { calibration: Some(Arc::new(calibration)), ..ConvertOptions::default() });
        convert(source, &at("no"), &options, &CancelToken::new(), &mut |_| ()).unwrap_err().to_string()
    };
    let text = refused(matrix(), other.path());
    assert!(
        text.contains("another model") && text.contains("small.gguf") && text.contains("columns"),
        "{text}"
    );
    let mut alien = Calibration::new("a picture");
    alien.insert("v.blk.0.weight", Inputs { sums: vec![1.0], counts: vec![1.0] }).unwrap();
    let text = refused(alien, folder.path());
    assert!(text.contains("a picture") && text.contains("another model"), "{text}");
    assert!(!at("no").exists());
}

#[test]
fn measured_inputs_are_those_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = with_outliers(folder.path());
    let ids = tokens(300, 1);
    let all = measured(folder.path(), &ids);
    assert_eq!(all.description(), "inputs measured on 300 tokens of noise");

    // The first matrices read the normed embedding, which is computed here again.
    let tensor = |name: &str| &tiny.tensors.iter().find(|t| t.0 == name).unwrap().2;
    let (embed, norm) =
        (tensor("model.embed_tokens.weight"), tensor("model.layers.0.input_layernorm.weight"));
    let eps = tiny.config["rms_norm_eps"].as_f64().unwrap();
    let mut want = [0.0f64; 64];
    for &id in &ids {
        let x = &embed[id as usize * 64..][..64];
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 64.0;
        for ((want, &x), &w) in want.iter_mut().zip(x).zip(norm) {
            *want += (f64::from(x) * f64::from(w)).powi(2) / (mean + eps);
        }
    }
    for part in ["attn_q", "attn_k", "attn_v"] {
        let got = all.get(&format!("blk.0.{part}.weight")).unwrap();
        assert_eq!(got.counts, [300.0]);
        let close = |(got, want): (&f32, &f64)| (f64::from(*got) - want).abs() < 1e-4 * want + 1e-6;
        assert!(got.sums.iter().zip(&want).all(close), "{part}: {:?} instead of {want:?}", got.sums);
    }
    // Every token has two experts and passes through their three matrices; the sums contain each token's input.
    for layer in 0..2 {
        let of = |part: &str| all.get(&format!("blk.{layer}.{part}.weight")).unwrap();
        let (gate, up, down) = (of("ffn_gate_exps"), of("ffn_up_exps"), of("ffn_down_exps"));
        assert_eq!(gate, up);
        assert_eq!(gate.counts, down.counts);
        assert_eq!(gate.counts.iter().sum::<f32>(), 600.0);
        assert_eq!((gate.sums.len(), down.sums.len()), (EXPERTS * 64, EXPERTS * 96));
        assert!(gate.counts.iter().all(|&n| n > 0.0) && down.sums.iter().all(|&s| s > 0.0));
        assert_eq!(of("attn_output").counts, [300.0]);
    }
    assert!(all.get("output.weight").is_none() && all.get("token_embd.weight").is_none());
}

/// Σ v·(w − ŵ)² over all experts of a nested file at `level`, relative to Σ v·w²; `v` is E(x²) over the inputs of
/// `seen`.
fn weighted_error(tiny: &Tiny, file: &Path, level: Level, seen: &Calibration) -> f64 {
    let file = NestedFile::new(Bytes::from(fs::read(file).unwrap())).unwrap();
    let (mut error, mut energy) = (0.0, 0.0);
    for (layer, e) in (0..2).flat_map(|layer| (0..EXPERTS).map(move |e| (layer, e))) {
        let experts = file.experts(layer, Some(level)).unwrap().unwrap();
        let parts = [("gate", experts[e].gate()), ("up", &experts[e].up), ("down", &experts[e].down)];
        for (part, matrix) in parts {
            let name = format!("model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight");
            let weights = &tiny.tensors.iter().find(|t| t.0 == name).unwrap().2;
            let inputs = seen.get(&format!("blk.{layer}.ffn_{part}_exps.weight")).unwrap();
            let (Matrix::Nested(nested), cols) = (matrix, matrix.cols()) else { panic!("{name} is nested") };
            let v = &inputs.sums[e * cols..][..cols];
            let mut row = vec![0.0; cols];
            for (r, want) in weights.chunks_exact(cols).enumerate() {
                nested.dequantize_row(r, &mut row);
                for ((&v, &w), &got) in v.iter().zip(want).zip(&row) {
                    let (v, w, got) = (f64::from(v), f64::from(w), f64::from(got));
                    error += v * (w - got).powi(2);
                    energy += v * w * w;
                }
            }
        }
    }
    error / energy
}

#[test]
fn low_levels_are_better_for_it_on_other_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = with_outliers(folder.path());
    let (plain, with) = (folder.path().join("plain.gguf"), folder.path().join("with.gguf"));
    converted(folder.path(), &plain, None);
    converted(folder.path(), &with, Some(measured(folder.path(), &tokens(2000, 1))));
    let others = measured(folder.path(), &tokens(2000, 77));
    let of = |level| [&plain, &with].map(|file| weighted_error(&tiny, file, level, &others));
    let all = [(Level::B2, 0.98), (Level::B3, 0.96), (Level::B4, 0.9)]
        .map(|(level, most)| (level, most, of(level)));
    println!("level, bound, error without and with calibration: {all:?}");
    for (level, most, [a, b]) in all {
        assert!(a > 1e-5 && b < most * a, "level {level}: {b} with calibration, {a} without");
    }
}

/// Squared distance between the logits of `ids` and the source's, relative to the source's.
fn distance(source: &Path, file: &Path, level: Level, ids: &[u32]) -> f64 {
    let logits =
        |engine: Engine| engine.session(SessionOptions::default()).unwrap().logits(ids).unwrap().concat();
    let want = logits(Engine::open_reference(source, &EngineOptions::default()).unwrap());
    let got = logits(
        Engine::open(
            file,
            &set!(EngineOptions { level: Some(level), isa: even_isa(), ..EngineOptions::default() }),
        )
        .unwrap(),
    );
    let squares = |a: &mut dyn Iterator<Item = f32>| a.map(|a| f64::from(a).powi(2)).sum::<f64>();
    squares(&mut want.iter().zip(&got).map(|(a, b)| a - b)) / squares(&mut want.iter().copied())
}

#[test]
fn error_feedback_brings_logits_nearer_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = with_outliers(folder.path());
    // Inputs in few directions, like those of trained models.
    let embed = &mut tiny.tensors.iter_mut().find(|t| t.0 == "model.embed_tokens.weight").unwrap().2;
    for i in 64..embed.len() {
        embed[i] = 0.1 * embed[i] + embed[i % 64 + 64 * (i / 64 % 7)] - embed[i % 64 + 64 * (i / 448 % 5)];
    }
    tiny.write_folder(folder.path());
    let at = |name: &str| folder.path().join(name);
    let keep = Some(Keep { path: at("inputs"), dense: false });
    let options = set!(CalibrateOptions { keep, ..CalibrateOptions::default() });
    let seen = tokens(4000, 1);
    let measure = || {
        dollop::calibrate_tokens(folder.path(), &seen, "noise", &options, &CancelToken::new(), &mut |_| ())
            .unwrap()
    };
    let calibration = Arc::new(measure());
    let kept = || {
        fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with("inputs"))
    };
    assert!(kept() && calibration.rows().is_some());
    for (name, threads) in [("one", 1), ("three", 3)] {
        let options = set!(ConvertOptions {
            calibration: Some(calibration.clone()),
            threads,
            ..ConvertOptions::default()
        });
        convert(folder.path(), &at(name), &options, &CancelToken::new(), &mut |_| ()).unwrap();
    }
    drop(calibration);
    assert!(!kept(), "the inputs' file is left");
    assert!(fs::read(at("one")).unwrap() == fs::read(at("three")).unwrap(), "threads change codes");
    converted(folder.path(), &at("rounded"), Some(measured(folder.path(), &seen)));
    let ids = &tokens(100, 77)[..100];
    let of = |level| ["rounded", "one"].map(|file| distance(folder.path(), &at(file), level, ids));
    let all = [Level::B2, Level::B3, Level::B4].map(of);
    println!("distances at 2, 3 and 4 bits, rounded and fed back: {all:?}");
    assert!(all.iter().all(|[rounded, fed]| *fed < 0.95 * rounded && *fed > 0.0), "{all:?}");
}

#[test]
fn equal_experts_with_other_inputs_lose_another_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::load("olmoe");
    let first = |name: &str, tiny: &Tiny| {
        let from = name.split_once(".experts.").map(|(a, b)| format!("{a}.experts.0.{}", &b[2..]));
        from.map(|from| tiny.tensors.iter().find(|t| t.0 == from).unwrap().2.clone())
    };
    let copies: Vec<_> = tiny.tensors.iter().map(|t| first(&t.0, &tiny)).collect();
    tiny.tensors.iter_mut().zip(copies).for_each(|(t, copy)| t.2 = copy.unwrap_or(t.2.clone()));
    tiny.write_folder(folder.path());
    let errors = |calibration: Option<Calibration>| {
        let out = folder.path().join("out.gguf");
        converted(folder.path(), &out, calibration);
        let file = NestedFile::new(Bytes::from(fs::read(&out).unwrap())).unwrap();
        (0..EXPERTS).map(|e| file.errors("blk.1.ffn_up_exps.weight", e).unwrap()).collect::<Vec<_>>()
    };
    let plain = errors(None);
    assert!(plain.windows(2).all(|w| w[0] == w[1]), "the experts are not equal: {plain:?}");
    let with = errors(Some(imatrix::read(&golden("imatrix/small.gguf")).unwrap()));
    for level in 0..2 {
        let mut of: Vec<f32> = with.iter().map(|e| e[level]).collect();
        of.sort_by(f32::total_cmp);
        assert!(of.windows(2).all(|w| w[0] < w[1]), "level {level}: {of:?}");
    }
}

#[test]
fn damage_is_refused_in_one_line() {
    for name in ["small.gguf", "small.dat"] {
        let bytes = fs::read(golden("imatrix").join(name)).unwrap();
        let text_bytes = 8 + "texts/wiki.train.raw".len();
        let mut accepted = Vec::new();
        for end in (0..bytes.len()).filter(|n| n % 7 == 0 || n + 64 > bytes.len() || *n < 256) {
            match imatrix::parse(&bytes[..end], name) {
                Ok(_) => accepted.push(bytes.len() - end),
                Err(e) => assert!(!e.to_string().contains('\n') && e.to_string().len() < 400, "{e}"),
            }
        }
        // Padding may be missing from a GGUF file; the older format may end before its number of chunks or its data
        // set.
        let harmless = |cut: &usize| {
            if name == "small.dat" { [text_bytes, text_bytes - 4].contains(cut) } else { *cut < 32 }
        };
        assert!(accepted.iter().all(harmless), "{name}: bytes missing at the end: {accepted:?}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    for (bytes, words) in [
        (&b"not an importance matrix at all"[..], ["importance matrix", "GGUF"]),
        (&[][..], ["file", "empty"]),
        (
            &[1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            ["entry 0", "below zero"],
        ),
        (
            &[1, 0, 0, 0, 1, 0, 0, 0, b'x', 1, 0, 0, 0, 255, 255, 255, 127, 0, 0, 0, 0][..],
            ["`x`", "end of the file"],
        ),
    ] {
        fs::write(file.path(), bytes).unwrap();
        let text = imatrix::read(file.path()).unwrap_err().to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
        assert!(text.contains(&file.path().display().to_string()), "{text}");
    }
    // A model instead of an importance matrix.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.gguf");
    let tiny = Tiny::load("olmoe");
    tiny.write_gguf(&model);
    let text = imatrix::read(&model).unwrap_err().to_string();
    assert!(text.contains("general.type") && text.contains("no importance matrix"), "{text}");

    // Texts that are too short, sources without a tokenizer, and cancellation.
    let options = CalibrateOptions::default();
    let run = |ids: &[u32], cancel: &CancelToken, progress: &mut dyn FnMut(dollop::Progress)| {
        dollop::calibrate_tokens(&model, ids, "noise", &options, cancel, progress)
    };
    let text = run(&tokens(20, 1), &CancelToken::new(), &mut |_| ()).unwrap_err().to_string();
    assert!(text.contains("20 tokens are too few"), "{text}");
    let text = dollop::calibrate(&model, "a text", "noise", &options, &CancelToken::new(), &mut |_| ());
    assert!(text.unwrap_err().to_string().contains("tokenizer"));
    let cancel = CancelToken::new();
    let mut steps = 0;
    let result = run(&tokens(1000, 1), &cancel, &mut |p| {
        steps += 1;
        assert!(p.done <= p.total && p.stage == "calibrating");
        cancel.cancel();
    });
    assert!(matches!(result, Err(Error::Cancelled)) && steps == 1, "{steps} steps");
}
