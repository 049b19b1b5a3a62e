//! Codes that index a table: those of MXFP4 and IQ4_NL are kept at 4 bits, and nested below.

use dollop::convert::{ConvertOptions, Group, GroupParams, Report, convert};
use dollop::inspect;
use dollop::internal::Bytes;
use dollop::internal::format::{GgmlType, Gguf, GgufWriter, TensorDecl};
use dollop::internal::model::Tensors;
use dollop::internal::model::file::NestedFile;
use dollop::internal::quant::{self, Encoded, Level, Nested, Shape};
use dollop::{BackendChoice, CancelToken, Engine, EngineOptions, Precision, SessionOptions};
use dollop_tests::tiny::Tiny;
use dollop_tests::{has_gpu, set, with_budget};
use std::path::{Path, PathBuf};

const TYPES: [GgmlType; 3] = [GgmlType::MXFP4, GgmlType::IQ4_NL, GgmlType::IQ4_XS];

const LEVELS: [Level; 3] = [Level::B2, Level::B3, Level::B4];

/// Keeps the codes of a matrix's blocks.
fn kept(ty: GgmlType, rows: usize, cols: usize, raw: &[u8]) -> dollop::Result<Encoded> {
    let shape = Shape::new(rows, cols, 32)?.with(quant::kept(ty).expect("its codes are kept"));
    Ok(Encoded::join(shape, &[quant::keep_rows(shape, 0, ty, raw, None, Level::B4, 1.0)?]))
}

fn dequantized(nested: &Nested) -> Vec<f32> {
    let shape = nested.shape();
    let mut out = vec![0.0; shape.rows * shape.cols];
    out.chunks_exact_mut(shape.cols).enumerate().for_each(|(row, out)| nested.dequantize_row(row, out));
    out
}

/// A block for every scale that a type's weights may have, each with all sixteen codes twice, in some order.
fn every_scale(ty: GgmlType) -> Vec<u8> {
    let codes =
        |i: usize| (0..16).map(move |j| ((i + 5 * j) % 16) as u8 | (((3 * i + 7 * j) % 16) as u8) << 4);
    // Finite scales for which no weight exceeds 8 million.
    let halves = |most: u16| (0..=u16::MAX).filter(move |bits| bits & 0x7fff < most && bits % 3 == 0);
    let mut raw = Vec::new();
    match ty {
        // Above 147 weights exceed 8 million.
        GgmlType::MXFP4 => (0..=147u8).for_each(|e| {
            raw.push(e);
            raw.extend(codes(e.into()));
        }),
        GgmlType::IQ4_NL => halves(0x7b00).for_each(|bits| {
            raw.extend(bits.to_le_bytes());
            raw.extend(codes(bits.into()));
        }),
        // All 6-bit scales of groups in turn.
        _ => halves(0x6400).step_by(11).for_each(|bits| {
            raw.extend(bits.to_le_bytes());
            raw.extend((bits.wrapping_mul(40_503) ^ 0x1b).to_le_bytes());
            raw.extend([0x10, 0x32, 0x54, 0x76].map(|x: u8| x.wrapping_add((bits >> 3) as u8)));
            (0..8).for_each(|g| raw.extend(codes(usize::from(bits) + g)));
        }),
    }
    raw
}

#[test]
fn gate_150_four_bits_are_the_values_of_the_source() {
    for ty in TYPES {
        let raw = every_scale(ty);
        let rows = raw.len() / ty.block_bytes();
        let mut want = vec![f32::NAN; ty.block_len() * rows];
        ty.dequantize(&raw, &mut want).unwrap();
        let got = dequantized(&kept(ty, rows, ty.block_len(), &raw).unwrap().into_nested().unwrap());
        assert!(rows > 100 && want.iter().filter(|w| **w != 0.0).count() > ty.block_len() * rows * 3 / 4);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(got == want, "{ty}, scale {}, value {}: {got} instead of {want}", i / 32, i % 32);
        }
    }
}

#[test]
fn scales_that_are_none_are_errors() {
    for (ty, scale) in
        [(GgmlType::MXFP4, &[255u8][..]), (GgmlType::MXFP4, &[200]), (GgmlType::IQ4_NL, &[0, 0x7e])]
    {
        let raw = [scale, &[0x77; 16]].concat();
        let text = kept(ty, 1, 32, &raw).unwrap_err().to_string();
        assert!(text.contains("row 0"), "{text}");
    }
}

/// Blocks of normally distributed weights, with the scale of MXFP4's specification or, for IQ4_NL, the best of a few.
fn normal(ty: GgmlType, blocks: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut values = [0.0; 32];
    let mut raw = Vec::new();
    for _ in 0..blocks {
        let w: [f32; 32] = std::array::from_fn(|_| {
            (-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f32::consts::TAU * unit()).cos()
        });
        let peak = w.into_iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { w } else { m });
        let scales: Vec<Vec<u8>> = match ty {
            GgmlType::MXFP4 => vec![vec![(127 + peak.abs().log2().floor() as i32 - 2) as u8]],
            _ => (-7..8).map(|n| half_bytes(peak / (-127.0 + n as f32))).collect(),
        };
        // For one scale: the nearest of the sixteen values for each weight, and the error.
        let mut tried = scales.into_iter().map(|scale| {
            let block = [&scale[..], &std::array::from_fn::<u8, 16, _>(|j| j as u8)].concat();
            ty.dequantize(&block, &mut values).unwrap();
            let error = |w: f32, c: usize| (w - values[c]).powi(2);
            let codes = w.map(|w| (0..16).min_by(|&a, &b| error(w, a).total_cmp(&error(w, b))).unwrap());
            let sum: f32 = w.iter().zip(codes).map(|(&w, c)| error(w, c)).sum();
            (sum, [scale, (0..16).map(|j| (codes[j] | codes[j + 16] << 4) as u8).collect()].concat())
        });
        let first = tried.next().unwrap();
        raw.extend(tried.fold(first, |best, next| if next.0 < best.0 { next } else { best }).1);
    }
    raw
}

fn half_bytes(x: f32) -> Vec<u8> {
    // The nearest f16 of a normal number.
    let bits = x.to_bits() + 0x0fff + (x.to_bits() >> 13 & 1);
    let exponent = (bits >> 23 & 255) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent));
    ((bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16)
        .to_le_bytes()
        .to_vec()
}

/// The figures are in `benches/records/table-codes.md`.
#[test]
fn gate_155_low_levels_err_no_more_than_uniform_codes_of_the_same_source() {
    let (rows, cols) = (64, 2048);
    // IQ4_XS has IQ4_NL's codes.
    for ty in [GgmlType::MXFP4, GgmlType::IQ4_NL] {
        let raw = normal(ty, rows * cols / 32);
        let mut w = vec![0.0; rows * cols];
        ty.dequantize(&raw, &mut w).unwrap();
        let energy: f64 = w.iter().map(|&w| f64::from(w).powi(2)).sum();
        let table = kept(ty, rows, cols, &raw).unwrap();
        let uniform = |group| {
            let shape = Shape::new(rows, cols, group).unwrap();
            quant::encode(shape, &w, None, Level::B8).unwrap()
        };
        let mut errors = [[0.0; 3]; 3];
        for (which, encoded) in [table, uniform(32), uniform(64)].into_iter().enumerate() {
            let bytes: Vec<usize> = encoded.planes.iter().map(Vec::len).collect();
            let said = encoded.errors;
            let nested = encoded.into_nested().unwrap();
            for (i, level) in LEVELS.into_iter().enumerate() {
                let got = dequantized(&nested.at(level).unwrap());
                let error: f64 =
                    w.iter().zip(got).map(|(&w, g)| f64::from(w - g).powi(2)).sum::<f64>() / energy;
                assert!((f64::from(said[i]) - error).abs() <= 0.01 * error + 1e-9, "{} for {error}", said[i]);
                let bits = bytes[..level.planes()].iter().sum::<usize>() as f64 * 8.0 / (rows * cols) as f64;
                println!(
                    "{ty}, {}, level {level}: {bits:.4} bits, error {error:.5}",
                    ["table", "32", "64"][which]
                );
                errors[which][i] = error;
                if which == 0 {
                    let scale = if ty == GgmlType::MXFP4 { 0.25 } else { 0.5 };
                    assert_eq!(bits, f64::from(level.bits()) + scale, "bits of the source");
                }
            }
        }
        let [table, _, by_64] = errors;
        assert_eq!(table[2], 0.0);
        assert!(by_64[2] > 1e-4, "{by_64:?}");
        // Uniform codes choose their scales for all levels; a table has its source's, and fewer bits.
        for i in 0..2 {
            assert!(table[i] < 1.1 * by_64[i], "{ty}, {}: {table:?} and {by_64:?}", LEVELS[i]);
        }
    }
}

fn converted(folder: &Path, out: &Path, options: &ConvertOptions) -> Report {
    convert(folder, out, options, &CancelToken::new(), &mut |_| ()).unwrap()
}

/// A tiny gpt-oss in MXFP4, as a Hugging Face folder, a GGUF file and our file of each.
fn gptoss(folder: &Path) -> [PathBuf; 3] {
    let tiny = Tiny::load("gptoss-mxfp4");
    tiny.write_folder(folder);
    let [gguf, of_folder, of_gguf] = ["gguf", "of-folder", "of-gguf"].map(|name| folder.join(name));
    tiny.write_gguf(&gguf);
    converted(folder, &of_folder, &ConvertOptions::default());
    converted(&gguf, &of_gguf, &ConvertOptions::default());
    [gguf, of_folder, of_gguf]
}

#[test]
fn gate_156_gpt_oss_keeps_its_codes_from_either_source() {
    let folder = tempfile::tempdir().unwrap();
    let [gguf, of_folder, of_gguf] = gptoss(folder.path());
    let open = |path: &Path| NestedFile::new(Bytes::from(std::fs::read(path).unwrap())).unwrap();
    let files = [&of_folder, &of_gguf].map(|path| open(path));
    let source = std::fs::read(&gguf).unwrap();
    let parsed = Gguf::parse(&source).unwrap();
    let mut compared = 0;
    for t in parsed.tensors.iter().filter(|t| t.ty == GgmlType::MXFP4) {
        let (block, part) = t.name.split_once(".ffn_").unwrap();
        let layer = block.strip_prefix("blk.").unwrap().parse().unwrap();
        let mut want = vec![0.0; t.shape.iter().product::<u64>() as usize];
        t.ty.dequantize(&source[t.offset as usize..][..t.n_bytes as usize], &mut want).unwrap();
        for file in &files {
            file.verify().unwrap();
            let table = file.layer_experts(layer).unwrap().unwrap();
            assert_eq!((table.level(), table.shapes[0].params), (Level::B4, GroupParams::Mxfp4));
            let experts = file.experts(layer, None).unwrap().unwrap();
            let got = experts.iter().flat_map(|e| {
                let m = [e.gate(), &e.up, &e.down]
                    [["gate", "up", "down"].iter().position(|p| part.starts_with(p)).unwrap()];
                let quant::Matrix::Nested(n) = m else { panic!("it is nested") };
                dequantized(n)
            });
            assert!(got.eq(want.iter().copied()), "{}", t.name);
            compared += want.len();
        }
    }
    assert!(compared > 10_000, "{compared}");
    let i = inspect::inspect(&of_gguf).unwrap();
    assert_eq!(i.planes.len(), 3);
    assert_eq!(i.table_weights, i.expert_weights);
    assert!(i.planes[2].bits_per_weight < 4.3, "{:?}", i.planes);
    // A level that is not stored is refused, and the message does not suggest an impossible request.
    let options =
        set!(EngineOptions { precision: Some(Precision::Exact(Level::B8)), ..EngineOptions::default() });
    let refused = Engine::open(&of_gguf, &options).err().expect("8 bits are not stored").to_string();
    assert!(refused.contains("4 bits"), "{refused}");
    // In groups of 64 they are converted like any other codes.
    let options = set!(ConvertOptions { group: Group::G64, ..ConvertOptions::default() });
    let path = folder.path().join("by-64");
    converted(&gguf, &path, &options);
    assert_eq!(inspect::inspect(&path).unwrap().table_weights, 0);
    let params = set!(ConvertOptions { params: GroupParams::Mxfp4, ..ConvertOptions::default() });
    let asked = convert(&gguf, &path, &params, &CancelToken::new(), &mut |_| ()).unwrap_err().to_string();
    assert!(asked.contains("tables"), "{asked}");
}

/// The GGUF file with blocks of IQ4_NL for dense matrices, and the first layer's down projections in f32.
/// These are stored beside gate and up, whose codes then cannot be kept.
fn mixed(gguf: &Path, to: &Path) {
    let source = std::fs::read(gguf).unwrap();
    let parsed = Gguf::parse(&source).unwrap();
    let rewritten = parsed.tensors.iter().map(|t| {
        let bytes = &source[t.offset as usize..][..t.n_bytes as usize];
        let elements = t.shape.iter().product::<u64>() as usize;
        let (ty, bytes) = if t.name == "blk.0.ffn_down_exps.weight" {
            let mut w = vec![0.0; elements];
            t.ty.dequantize(bytes, &mut w).unwrap();
            (GgmlType::F32, w.iter().flat_map(|w| w.to_le_bytes()).collect())
        } else if t.shape.len() == 2
            && (t.name.contains("attn_") || t.name.contains("token_embd"))
            && t.name.ends_with(".weight")
        {
            let mut raw = normal(GgmlType::IQ4_NL, elements / 32);
            // Scales of about 1/2000: weights of about 1/30.
            raw.chunks_exact_mut(18).for_each(|block| block[1] = block[1] & 0x80 | 0x10);
            (GgmlType::IQ4_NL, raw)
        } else {
            (t.ty, bytes.to_vec())
        };
        (TensorDecl { name: t.name.clone(), shape: t.shape.clone(), ty }, bytes)
    });
    let (decls, bytes): (Vec<_>, Vec<_>) = rewritten.unzip();
    let mut writer =
        GgufWriter::new(std::fs::File::create(to).unwrap(), &parsed.metadata, &decls, 32).unwrap();
    bytes.iter().enumerate().for_each(|(i, bytes)| writer.write(i, 0, bytes).unwrap());
    writer.finish().unwrap();
}

#[test]
fn gate_156_dense_matrices_keep_theirs_and_mixed_experts_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let [gguf, ..] = gptoss(folder.path());
    let [source, out] = ["mixed.gguf", "mixed"].map(|name| folder.path().join(name));
    mixed(&gguf, &source);
    converted(&source, &out, &ConvertOptions::default());
    let file = NestedFile::new(Bytes::from(std::fs::read(&out).unwrap())).unwrap();
    file.verify().unwrap();
    let kinds = [0, 1].map(|layer| {
        let table = file.layer_experts(layer).unwrap().unwrap();
        (table.level(), table.shapes.map(|shape| shape.params))
    });
    assert_eq!(kinds[0], (Level::B8, [GroupParams::Wide; 3]));
    assert_eq!(kinds[1], (Level::B4, [GroupParams::Mxfp4; 3]));
    let raw = std::fs::read(&source).unwrap();
    let mut dense = 0;
    for t in Gguf::parse(&raw).unwrap().tensors.iter().filter(|t| t.ty == GgmlType::IQ4_NL) {
        let mut want = vec![0.0; t.shape.iter().product::<u64>() as usize];
        t.ty.dequantize(&raw[t.offset as usize..][..t.n_bytes as usize], &mut want).unwrap();
        let Some(quant::Matrix::Nested(n)) = file.matrix(&t.name).unwrap() else { panic!("{}", t.name) };
        assert_eq!((n.level(), n.shape().params), (Level::B4, GroupParams::Iq4Nl), "{}", t.name);
        assert!(dequantized(&n) == want, "{}", t.name);
        dense += 1;
    }
    assert!(dense > 4, "{dense} dense matrices");
    // Compared with the logits of the source's own values, the error is at most that of uniform 8-bit codes in
    // groups of 64. It comes from rounding inputs to 8 bits, and from experts chosen differently because of it.
    let options = set!(EngineOptions { threads: 2, context: Some(64), ..EngineOptions::default() });
    let want = logits(&Engine::open_reference(&source, &options).unwrap()).concat();
    let energy: f32 = want.iter().map(|x| x * x).sum();
    let error = |path: &Path, backend| {
        let got = logits(&Engine::open(path, &options.clone().with_backend(backend)).unwrap()).concat();
        want.iter().zip(&got).map(|(w, g)| (w - g).powi(2)).sum::<f32>() / energy
    };
    let uniform = folder.path().join("uniform");
    converted(&source, &uniform, &set!(ConvertOptions { group: Group::G64, ..ConvertOptions::default() }));
    let backends = [BackendChoice::Cpu, BackendChoice::Gpu(None)];
    for backend in backends.into_iter().take(if has_gpu() { 2 } else { 1 }) {
        let errors = [&out, &uniform].map(|path| error(path, backend));
        println!("{backend:?}: squared error of logits {errors:?}, tables and uniform");
        assert!(errors[0] < 1.5 * errors[1] && errors[0] < 0.05, "{errors:?}");
    }
}

#[test]
fn gate_151_an_upgrade_reads_the_missing_planes_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [_, path, _] = gptoss(folder.path());
    let adaptive = |quality| Precision::Adaptive { quality, floor: Level::B2 };
    let mut options = set!(EngineOptions {
        threads: 2,
        precision: Some(adaptive(2.0)),
        context: Some(64),
        chunk: Some(32),
        ..EngineOptions::default()
    });
    // One byte less than everything: streaming, with room for almost everything.
    options.memory = Some(Engine::plan(&path, &options).unwrap().total_bytes() - 1);
    let engine = Engine::open(&path, &options).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&[7]).unwrap();
    let low = engine.stream_stats().expect("it streams");
    assert!(low.planes_wanted[0] > 0 && low.planes_wanted[2] == 0, "{low:?}");
    engine.streamer().unwrap().set_quality(8.0);
    session.rewind(0);
    session.logits(&[7]).unwrap();
    let high = engine.stream_stats().expect("it streams").since(&low);
    assert!(high.planes_hit[0] > 0 && high.planes_wanted[2] > 0 && high.upgrades > 0, "{high:?}");
    assert_eq!(high.planes_wanted[3..], [0; 2], "there are no planes beyond 4 bits");
    let file = NestedFile::new(Bytes::from(std::fs::read(&path).unwrap())).unwrap();
    let table = file.layer_experts(0).unwrap().unwrap();
    let read: u64 =
        (0..3).map(|p| (high.planes_wanted[p] - high.planes_hit[p]) * table.plane_bytes(p) as u64).sum();
    assert_eq!(high.bytes_wanted, read);
}

#[test]
fn gate_151_tables_that_their_planes_contradict_are_refused() {
    let encoded = kept(GgmlType::MXFP4, 1, 32, &[&[120u8][..], &[0x77; 16]].concat()).unwrap();
    let planes: Vec<Bytes> = encoded.planes.iter().cloned().map(Bytes::from).collect();
    let wide = |p: usize| Bytes::from(vec![0; encoded.shape.plane(p).len]);
    Nested::new(encoded.shape, planes.clone(), encoded.fits).unwrap();
    let more = [planes, vec![wide(3)]].concat();
    let text = Nested::new(encoded.shape, more, encoded.fits).unwrap_err().to_string();
    assert!(text.contains("table") && text.contains("6 bits"), "{text}");
    for (group, cols, params) in [(64, 64, GroupParams::Mxfp4), (32, 128, GroupParams::Iq4Xs)] {
        let shape = Shape::new(16, cols, group).unwrap().with(params);
        assert!(shape.check(Level::B2).is_err(), "{shape} {params:?}");
    }
}

/// Logits of a prompt computed at once, and of tokens after it one by one.
fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let ids: Vec<u32> = (0..60u32).map(|i| 3 + (i.wrapping_mul(2_654_435_761) >> 13) % 250).collect();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut all = session.logits(&ids[..40]).unwrap();
    ids[40..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

#[test]
fn gate_154_streamed_is_resident_byte_for_byte_at_every_level() {
    let folder = tempfile::tempdir().unwrap();
    let [_, path, _] = gptoss(folder.path());
    let backends = [BackendChoice::Cpu, BackendChoice::Gpu(None)];
    for backend in backends.into_iter().take(if has_gpu() { 2 } else { 1 }) {
        let mut levels = Vec::new();
        for level in LEVELS {
            let options = set!(EngineOptions {
                threads: 2,
                precision: Some(Precision::Exact(level)),
                context: Some(64),
                chunk: Some(32),
                backend,
                ..EngineOptions::default()
            });
            let resident = Engine::open(&path, &options).unwrap();
            assert!(resident.stream_stats().is_none());
            let want = logits(&resident);
            assert!(want.iter().flatten().all(|x| x.is_finite()));
            let streamed = Engine::open(&path, &with_budget(&path, options, 20_000)).unwrap();
            assert!(logits(&streamed) == want, "{backend:?}, level {level}");
            let stats = streamed.stream_stats().expect("it streams");
            assert!(stats.bytes_wanted > 0 && stats.evictions > 0, "{stats:?}");
            levels.push(want);
        }
        assert!(levels[0] != levels[1] && levels[1] != levels[2]);
    }
}
