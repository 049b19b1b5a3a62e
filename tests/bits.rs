//! Gates 102 and 103: files whose experts are stored at different levels have the requested size, open,
//! stream and report their levels; and a size puts the bits where they matter.

use dollop::convert::{Calibration, ConvertOptions, Size, convert};
use dollop::internal::Bytes;
use dollop::internal::Keep;
use dollop::internal::format::{Gguf, GgufWriter, TensorDecl};
use dollop::internal::model::file::NestedFile;
use dollop::internal::quant::Level;
use dollop::internal::sched::Precision;
use dollop::{BackendChoice, CalibrateOptions, CancelToken, Engine, EngineOptions, SessionOptions};
use dollop_tests::set;
use dollop_tests::uneven::{EXPERTS, at_level, divergence, noise, uneven};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn measured(source: &Path, keep: Option<Keep>) -> Arc<Calibration> {
    let options = set!(CalibrateOptions { keep, ..CalibrateOptions::default() });
    Arc::new(
        dollop::calibrate_tokens(
            source,
            &noise(4000, 5),
            "noise",
            &options,
            &CancelToken::new(),
            &mut |_| (),
        )
        .unwrap(),
    )
}

fn converted(source: &Path, out: &Path, calibration: Option<&Arc<Calibration>>, size: Option<Size>) -> u64 {
    let calibration = calibration.cloned();
    let options = set!(ConvertOptions { calibration, size, ..ConvertOptions::default() });
    convert(source, out, &options, &CancelToken::new(), &mut |_| ()).unwrap().bytes_out
}

fn open(path: &Path) -> NestedFile {
    NestedFile::new(Bytes::from(fs::read(path).unwrap())).unwrap()
}

fn mean_bits(file: &NestedFile) -> f64 {
    let levels: Vec<u8> = file.expert_levels().into_iter().flat_map(|(_, levels)| levels).collect();
    levels.iter().map(|&l| f64::from(l)).sum::<f64>() / levels.len() as f64
}

#[test]
fn a_file_is_as_large_as_was_asked_for_and_says_where_its_bits_are() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 3.0);
    let at = |name: &str| folder.path().join(name);
    let calibration = measured(folder.path(), None);
    let whole = converted(folder.path(), &at("whole"), Some(&calibration), None);
    for bits in [2.0, 2.5, 3.2, 5.0, 8.0] {
        let bytes = converted(folder.path(), &at("cut"), Some(&calibration), Some(Size::Bits(bits)));
        let file = open(&at("cut"));
        file.verify().unwrap();
        let mean = mean_bits(&file);
        println!("{bits} bits: {mean} on average, {bytes} of {whole} bytes");
        assert!(mean <= bits && mean > 0.99 * bits, "{mean} for {bits}");
        assert_eq!(fs::metadata(at("cut")).unwrap().len(), bytes);
        assert_eq!(file.directory().is_uneven(), ![2.0, 8.0].contains(&bits), "{bits}");
        let shown = dollop::inspect::inspect(&at("cut")).unwrap();
        assert_eq!(shown.expert_levels.values().sum::<usize>(), 2 * EXPERTS);
        let of_layers = shown.layer_bits.values().sum::<f64>() / 2.0;
        assert!((of_layers - mean).abs() < 1e-9);
        // Up to its level, an expert equals that of the whole file: codes, corrections and errors.
        if bits == 8.0 {
            assert!(fs::read(at("cut")).unwrap() == fs::read(at("whole")).unwrap());
        }
    }
    for share in [0.6, 0.75, 0.9] {
        let size = (whole as f64 * share) as u64;
        let bytes = converted(folder.path(), &at("cut"), Some(&calibration), Some(Size::File(size)));
        assert!(bytes <= size && bytes as f64 > 0.99 * size as f64, "{bytes} of {size}");
        open(&at("cut")).verify().unwrap();
    }
    let options = set!(ConvertOptions { size: Some(Size::File(1000)), ..ConvertOptions::default() });
    let refused = convert(folder.path(), &at("no"), &options, &CancelToken::new(), &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("all experts at 2 bits"), "{refused}");
    let left = fs::read_dir(folder.path()).unwrap().flatten().filter(|e| {
        let name = e.file_name();
        let name = name.to_string_lossy();
        name.contains("partial") || name == "no"
    });
    assert_eq!(left.count(), 0, "something is left");
}

/// Logits of several tokens, computed at once and one after another.
fn logits(path: &Path, options: &EngineOptions) -> Vec<f32> {
    let engine = Engine::open(path, options).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut all = session.logits(&noise(20, 3)).unwrap().concat();
    for id in noise(12, 9) {
        all.extend(session.logits(&[id]).unwrap().concat());
    }
    if options.streaming.always {
        let stats = engine.stream_stats().unwrap();
        assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "nothing was streamed: {stats:?}");
    }
    all
}

#[test]
fn experts_of_different_levels_stream_as_they_are_resident() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 3.0);
    let path = folder.path().join("cut");
    converted(folder.path(), &path, Some(&measured(folder.path(), None)), Some(Size::Bits(3.2)));
    let backends: &[BackendChoice] = match std::env::var_os("DOLLOP_TEST_GPU") {
        Some(_) => &[BackendChoice::Cpu, BackendChoice::Gpu(None)],
        None => &[BackendChoice::Cpu],
    };
    for &backend in backends {
        let base = EngineOptions::default().with_backend(backend).with_threads(2);
        for level in [Level::B2, Level::B3, Level::B8] {
            let level = level.min(
                open(&path)
                    .expert_levels()
                    .iter()
                    .flat_map(|(_, l)| l)
                    .map(|&l| Level::from_bits(l).unwrap())
                    .max()
                    .unwrap(),
            );
            let mut whole = base.clone();
            whole.precision = Some(Precision::Exact(level));
            let resident = logits(&path, &whole);
            let smallest = Engine::plan(&path, &whole).unwrap().smallest_bytes;
            for more in [0, 200 << 10] {
                let mut streamed = whole.clone().with_memory(smallest + more);
                streamed.streaming.always = true;
                assert!(
                    resident == logits(&path, &streamed),
                    "{backend:?}, level {level}, {more} bytes more"
                );
            }
        }
        // Adaptive precision never requests a plane that is not stored, and repeats.
        let mut adaptive = base.clone();
        adaptive.precision = Some("adaptive:6".parse().unwrap());
        let smallest = Engine::plan(&path, &adaptive).unwrap().smallest_bytes;
        adaptive = adaptive.with_memory(smallest + (100 << 10));
        adaptive.streaming.always = true;
        assert!(logits(&path, &adaptive) == logits(&path, &adaptive), "{backend:?}");
    }
}

#[test]
fn bits_lie_where_they_matter() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 3.0);
    let at = |name: &str| folder.path().join(name);
    let keep = Keep { path: at("inputs"), dense: false };
    let calibration = measured(folder.path(), Some(keep));
    converted(folder.path(), &at("whole"), Some(&calibration), None);
    converted(folder.path(), &at("cut"), Some(&calibration), Some(Size::Bits(3.2)));
    let ids = noise(300, 77);
    let [three, four] =
        [Level::B3, Level::B4].map(|level| divergence(folder.path(), &at("whole"), &at_level(level), &ids));
    let between = three + 0.2 * (four - three);
    let cut = divergence(folder.path(), &at("cut"), &EngineOptions::default(), &ids);
    println!("KL {three} at 3 bits, {four} at 4, {between} between them at 3.2; {cut} where bits matter");
    assert!(cut > 0.0 && cut < 0.95 * between, "{cut}, and {between} between");
}

#[test]
fn levels_that_contradict_the_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 3.0);
    let path = folder.path().join("cut");
    converted(folder.path(), &path, None, Some(Size::Bits(3.2)));
    let bytes = fs::read(&path).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let key = "dollop.matrix.levels";
    let levels = gguf.metadata.u64s(key).unwrap().unwrap();
    assert_eq!(levels.len(), 3 * 2 * EXPERTS);
    let with = |levels: Vec<u64>| {
        let mut metadata = gguf.metadata.clone();
        metadata.insert(key, levels);
        let tensors: Vec<TensorDecl> = (gguf.tensors.iter())
            .map(|t| TensorDecl { name: t.name.clone(), shape: t.shape.clone(), ty: t.ty })
            .collect();
        let to = std::io::Cursor::new(Vec::new());
        let mut writer = GgufWriter::new(to, &metadata, &tensors, gguf.alignment).unwrap();
        for (i, t) in gguf.tensors.iter().enumerate() {
            writer.write(i, 0, &bytes[t.offset as usize..][..t.n_bytes as usize]).unwrap();
        }
        let file = NestedFile::new(Bytes::from(writer.finish().unwrap().into_inner()))?;
        (0..2).try_for_each(|layer| file.layer_experts(layer).map(drop))
    };
    with(levels.clone()).unwrap();
    let changed = |at: usize, to: u64| {
        let mut levels = levels.clone();
        levels[at] = to;
        with(levels).unwrap_err().to_string()
    };
    assert!(with(levels[1..].to_vec()).unwrap_err().to_string().contains("entries for"));
    assert!(changed(0, 5).contains("levels of experts"), "{}", changed(0, 5));
    assert!(changed(0, 200).contains("more than 8"));
    let other = if levels[0] == 3 { 2 } else { 3 };
    assert!(changed(0, other).contains("differ"), "{}", changed(0, other));
    // All three parts of an expert: then planes have other sizes than expected.
    let mut three = levels.clone();
    (0..3).for_each(|part| three[part * EXPERTS] = other);
    let refused = with(three).unwrap_err().to_string();
    assert!(refused.contains("bytes for"), "{refused}");
}
