//! Gate 94: matrices of experts that are stored for rotated inputs. The file names them; logits equal those
//! of the weights that it represents, on every backend, resident and streamed; unknown rotations are refused.

use dollop::convert::{ConvertOptions, convert};
use dollop::internal::format::hf;
use dollop::internal::model::Tensors;
use dollop::internal::model::file::NestedFile;
use dollop::internal::quant::Matrix;
use dollop::{BackendChoice, CancelToken, Engine, EngineOptions, Level, Precision, SessionOptions};
use dollop_tests::tiny::Tiny;
use dollop_tests::{has_gpu, set, with_budget};
use std::fs;
use std::path::{Path, PathBuf};

/// A model whose hidden values form a number of blocks that is not a power of two (3 · 32), and its file.
fn rotated() -> (tempfile::TempDir, Tiny, PathBuf) {
    let (folder, tiny) = (tempfile::tempdir().unwrap(), Tiny::load("olmoe"));
    let path = tiny.write_fed_back(folder.path(), true);
    (folder, tiny, path)
}

fn open(path: &Path) -> NestedFile {
    NestedFile::new(dollop::internal::Bytes::from(fs::read(path).unwrap())).unwrap()
}

fn version(path: &Path) -> u64 {
    open(path).directory().gguf.metadata.u64("dollop.version").unwrap().unwrap()
}

fn tokens() -> Vec<u32> {
    (0..60u32).map(|i| 3 + (i.wrapping_mul(2_654_435_761) >> 13) % 250).collect()
}

/// Logits of a prompt computed at once, and of the tokens after it one by one.
fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let (ids, mut session) = (tokens(), engine.session(SessionOptions::default()).unwrap());
    let mut all = session.logits(&ids[..40]).unwrap();
    ids[40..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

fn options(level: Level) -> EngineOptions {
    set!(EngineOptions { threads: 2, level: Some(level), context: Some(64), ..EngineOptions::default() })
}

#[test]
fn gate_94_a_file_says_what_is_rotated() {
    let (folder, tiny, path) = rotated();
    let file = open(&path);
    file.verify().unwrap();
    assert_eq!(version(&path), 3);
    for entry in &file.directory().matrices {
        assert_eq!(entry.rotation, u8::from(entry.experts > 0), "{}", entry.name);
    }
    for layer in 0..2 {
        let experts = file.experts(layer, None).unwrap().unwrap();
        let columns = |m: &Matrix| m.rotation().unwrap().cols();
        assert!(experts.iter().all(|e| [e.gate(), &e.up, &e.down].map(columns) == [64, 64, 96]));
    }
    let shown = dollop::inspect::inspect(&path).unwrap();
    assert!(shown.rotated_weights > 0 && shown.rotated_weights == shown.expert_weights);

    // Without error feedback, or without rotation, the file is byte-identical to earlier versions'.
    let plain = tiny.write_fed_back(folder.path(), false);
    assert_eq!((version(&plain), dollop::inspect::inspect(&plain).unwrap().rotated_weights), (2, 0));
    let rounded = folder.path().join("rounded.gguf");
    for rotate in [true, false] {
        let options = set!(ConvertOptions { rotate, ..ConvertOptions::default() });
        convert(folder.path(), &rounded, &options, &CancelToken::new(), &mut |_| ()).unwrap();
        assert_eq!(
            (version(&rounded), open(&rounded).directory().gguf.metadata.get("dollop.matrix.rotation")),
            (2, None)
        );
    }
    for path in [&plain, &rounded] {
        assert!(
            logits(&Engine::open(path, &options(Level::B4)).unwrap()).iter().flatten().all(|x| x.is_finite())
        );
    }
}

/// The source with the weights that a file represents at a level, for inputs without rotation.
fn decoded(tiny: &Tiny, file: &NestedFile, level: Level, folder: &Path) {
    let mut tiny = Tiny {
        name: tiny.name.clone(),
        config: tiny.config.clone(),
        tensors: tiny.tensors.clone(),
        tokens: vec![],
        logits: vec![],
    };
    let layers: Vec<_> = (0..2).map(|layer| file.experts(layer, Some(level)).unwrap().unwrap()).collect();
    let (mut of_experts, mut dense) = (0, 0);
    for (name, shape, data) in &mut tiny.tensors {
        let place = hf::places(name, &hf::Dialect::USUAL).unwrap().remove(0);
        let matrix = match place.expert {
            Some(e) => {
                let layer: usize = place.name.split('.').nth(1).unwrap().parse().unwrap();
                let expert = &layers[layer][e];
                let part = [("gate", expert.gate()), ("up", &expert.up), ("down", &expert.down)];
                part.into_iter()
                    .find(|(part, _)| place.name.contains(&format!("ffn_{part}_")))
                    .map(|p| p.1.clone())
            }
            None => file.matrix(&place.name).unwrap(),
        };
        let Some(Matrix::Nested(matrix)) = matrix else { continue };
        for (row, out) in data.chunks_exact_mut(shape[1]).enumerate() {
            matrix.dequantize_row(row, out);
        }
        *(if place.expert.is_some() { &mut of_experts } else { &mut dense }) += 1;
    }
    assert!(of_experts == 2 * 8 * 3 && dense > 8, "{of_experts} matrices of experts, {dense} others");
    tiny.write_folder(folder);
}

/// Squared distance of logits, relative to the wanted ones, at the median position. If rounded activations
/// make a router choose another expert, a position is far off.
fn distance(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let of = |(got, want): (&Vec<f32>, &Vec<f32>)| {
        squares(&mut got.iter().zip(want).map(|(a, b)| a - b)) / squares(&mut want.iter().copied())
    };
    let mut all: Vec<f64> = got.iter().zip(want).map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[test]
fn gate_94_logits_are_those_of_the_weights_that_the_file_stands_for() {
    let (folder, tiny, path) = rotated();
    let plain = tiny.write_fed_back(folder.path(), false);
    for level in [Level::B2, Level::B4, Level::B8] {
        let on = |path: &Path, backend| {
            logits(&Engine::open(path, &options(level).with_backend(backend)).unwrap())
        };
        // For the file with rotated inputs, and for the other: the distance from its own weights.
        let [far, bound] = [&path, &plain].map(|path| {
            let folder = tempfile::tempdir().unwrap();
            decoded(&tiny, &open(path), level, folder.path());
            let want = logits(&Engine::open_reference(folder.path(), &EngineOptions::default()).unwrap());
            // Activations in 8 bits, keys and values in half precision; on a GPU, only half precision there.
            let gpu = has_gpu().then(|| distance(&on(path, BackendChoice::Gpu(None)), &want));
            [Some(distance(&on(path, BackendChoice::Cpu), &want)), gpu]
        });
        println!("level {level}, CPU and GPU: squared distances {far:?} rotated, {bound:?} as they are");
        for (far, bound, most) in [(far[0], bound[0], 1e-3), (far[1], bound[1], 1e-6)] {
            let (Some(far), Some(bound)) = (far, bound) else { continue };
            assert!(far < most && far < 4.0 * bound, "level {level}: {far}, {bound} as they are");
        }
    }
}

#[test]
fn gate_94_streamed_is_resident_to_the_last_bit() {
    let (_folder, _, path) = rotated();
    let backends = [BackendChoice::Cpu, BackendChoice::Gpu(None)];
    for backend in backends.into_iter().take(1 + usize::from(has_gpu())) {
        let resident = options(Level::B4).with_backend(backend);
        let want = logits(&Engine::open(&path, &resident).unwrap());
        let streamed = set!(EngineOptions {
            level: None,
            precision: Some(Precision::Exact(Level::B4)),
            ..resident.clone()
        });
        let streamed = with_budget(&path, streamed, 0);
        let engine = Engine::open(&path, &streamed).unwrap();
        assert!(engine.memory_plan().streaming);
        assert_eq!(logits(&engine), want, "{backend:?}");
        let stats = engine.stream_stats().unwrap();
        assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "{stats:?}");
        // Adaptive precision makes the same decisions twice, and gives other logits.
        let adaptive = Precision::Adaptive { quality: 2.5, floor: Level::B2 };
        let adaptive = with_budget(&path, set!(EngineOptions { precision: Some(adaptive), ..streamed }), 0);
        let [a, b] = [(); 2].map(|()| logits(&Engine::open(&path, &adaptive).unwrap()));
        assert!(a == b && a != want, "{backend:?}");
    }
}

#[test]
fn gate_94_what_is_not_understood_is_refused() {
    let (folder, _, path) = rotated();
    let bytes = fs::read(&path).unwrap();
    let key = b"dollop.matrix.rotation";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    // After the key: the array type, the element type, and the length.
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (kind, count) = (word(at), word(at + 8) as usize);
    assert_eq!(kind, 4 << 32 | 9, "an array of u32");
    let first = at + 16;
    let file = open(&path);
    let entries = &file.directory().matrices;
    assert_eq!(count, entries.len());
    let of = |name: &str| first + 4 * entries.iter().position(|e| e.name.contains(name)).unwrap();
    let refused = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let path = folder.path().join("other.gguf");
        fs::write(&path, bytes).unwrap();
        let errors = [
            Engine::open(&path, &EngineOptions::default()).err().unwrap().to_string(),
            dollop::inspect::inspect(&path).err().map(|e| e.to_string()).unwrap_or_default(),
        ];
        errors.into_iter().find(|e| !e.is_empty()).unwrap()
    };
    let text = refused(of("ffn_down_exps"), 2);
    assert!(text.contains("ffn_down_exps") && text.contains("rotation 2 is not known"), "{text}");
    let text = refused(of("attn_q"), 1);
    assert!(text.contains("attn_q") && text.contains("only those of experts"), "{text}");
    let text = refused(of("ffn_gate_exps"), 0);
    assert!(text.contains("gate and up") && text.contains("rotation"), "{text}");
    let text = refused(of("ffn_gate_exps"), 300);
    assert!(text.contains("dollop.matrix.rotation"), "{text}");
}
