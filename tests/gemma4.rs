//! Gate 107: Gemma 4, whose layers have a dense block beside routed experts, and heads that depend on the kind of
//! layer: streamed results equal resident ones, byte for byte, on CPU and GPU, for each way of summing experts.
//! Gate 109: of a model with images, only the text's part is read, and the rest is reported.
//! Gate 108: its smaller models, whose layers have their own inputs, read rows of these from the file, and compute the last
//! layers only for the requested positions.

use dollop::{BackendChoice, CancelToken, Engine, EngineOptions, Level, Precision, SessionOptions};
use dollop_tests::tiny::Tiny;
use dollop_tests::{even_isa, has_gpu, set, with_budget};
use std::path::{Path, PathBuf};

/// Some experts of some layers: bytes beyond the smallest budget that works.
const SOME: u64 = 20_000;

fn tokens() -> Vec<u32> {
    (0..60u32).map(|i| 3 + (i.wrapping_mul(2_654_435_761) >> 13) % 250).collect()
}

/// Logits of a prompt computed at once, and of tokens after it one by one.
fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let (ids, mut session) = (tokens(), engine.session(SessionOptions::default()).unwrap());
    let mut all = session.logits(&ids[..40]).unwrap();
    ids[40..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

fn converted(name: &str, folder: &Path) -> PathBuf {
    Tiny::load(name).write_folder(folder);
    let path = folder.join("model.gguf");
    dollop::convert::convert(folder, &path, &Default::default(), &CancelToken::new(), &mut |_| ()).unwrap();
    path
}

#[test]
fn gate_107_streamed_is_resident_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = converted("gemma4", folder.path());
    let backends = [BackendChoice::Cpu, BackendChoice::Gpu(None)];
    for backend in backends.into_iter().take(if has_gpu() { 2 } else { 1 }) {
        let options = set!(EngineOptions {
            threads: 2,
            precision: Some(Precision::Exact(Level::B4)),
            context: Some(64),
            chunk: Some(32),
            backend,
            ..EngineOptions::default()
        });
        let resident = Engine::open(&path, &options).unwrap();
        assert!(resident.stream_stats().is_none());
        let want = logits(&resident);
        assert!(want.iter().flatten().all(|x| x.is_finite()));
        for lookahead in [0, 2] {
            let mut o = with_budget(&path, options.clone(), SOME);
            o.routing.lookahead = lookahead;
            let streamed = Engine::open(&path, &o).unwrap();
            assert!(logits(&streamed) == want, "logits differ with {lookahead} read ahead");
            let stats = streamed.stream_stats().expect("it streams");
            assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "{stats:?}");
        }
    }
}

#[test]
fn gate_109_what_takes_pictures_is_left_out_and_told() {
    for (name, parts) in [
        ("gemma3-sight", vec!["multi_modal_projector (2)", "vision_tower (32)"]),
        ("gemma4-sight", vec!["embed_vision (1)", "vision_tower (15)"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        Tiny::load(name).write_folder(folder.path());
        let path = folder.path().join("model.gguf");
        let (options, cancel) = (Default::default(), CancelToken::new());
        let report = dollop::convert::convert(folder.path(), &path, &options, &cancel, &mut |_| ()).unwrap();
        assert_eq!(report.left_out, parts);
        let notes = dollop::inspect::inspect(&path).unwrap().notes;
        assert!(notes.iter().any(|n| n.contains("left out") && n.ends_with(&parts.join(", "))), "{notes:?}");
    }
}

/// The error from 8-bit weights and inputs, as a share of the squares of logits. Wrong rows would change most of it.
const ROUNDED: f32 = 0.01;

#[test]
fn gate_108_inputs_of_layers_are_read_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = converted("gemma4-inputs", folder.path());
    let tiny = Tiny::load("gemma4-inputs");
    let backends = [BackendChoice::Cpu, BackendChoice::Gpu(None)];
    for backend in backends.into_iter().take(if has_gpu() { 2 } else { 1 }) {
        let options = set!(EngineOptions {
            threads: 2,
            context: Some(64),
            backend,
            isa: even_isa(),
            ..EngineOptions::default()
        });
        let engine = Engine::open(&path, &options).unwrap();
        let session = |chunk| engine.session(SessionOptions::default().with_chunk(chunk)).unwrap();
        let whole = session(64).logits(&tiny.tokens).unwrap();
        let far = tiny.error(&whole);
        println!("{far} of the squares of logits");
        assert!(far > 0.0 && far < ROUNDED, "logits are off by {far}");
        let before = engine.input_reads().expect("rows are read").bytes;
        assert!(before > 0);
        assert!(session(1).logits(&tiny.tokens).unwrap() == whole, "token by token");
        assert!(engine.input_reads().unwrap().bytes > before);
        // Three of six layers have no keys of their own: only the last position passes through them.
        let last = session(64).last_logits(&tiny.tokens).unwrap();
        assert!(last == whole[whole.len() - 1], "the last position alone");
        // The plan does not count what is never in memory.
        let held =
            tiny.tensors.iter().filter(|t| !t.0.contains("per_layer")).map(|t| t.2.len()).sum::<usize>();
        let plan = engine.memory_plan();
        assert!(plan.dense_bytes < 4 * held as u64, "{} bytes of {held} weights", plan.dense_bytes);
    }
}
