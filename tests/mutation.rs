//! Gate: files that were truncated, flipped or overwritten are refused in one line. Tens of thousands of
//! mutants of real small files go through every parser of untrusted bytes. None may panic, take long, or
//! allocate more than a small multiple of the file's size (R5).
//!
//! The mutants are the same in every run; a failure prints the seed that creates the mutant again.

use dollop::CancelToken;
use dollop::convert::source::Source;
use dollop::convert::{ConvertOptions, Size, convert, imatrix};
use dollop::internal::Bytes;
use dollop::internal::format::{Array, GgmlType, Gguf, GgufWriter, Metadata, TensorDecl, Value, Width};
use dollop::internal::format::{dollop::Directory, hf, safetensors};
use dollop::internal::model::file::NestedFile;
use dollop::internal::model::{Spec, Weights, families};
use dollop_tests::golden;
use dollop_tests::mutants::{Counting, Rng, most_allocated};
use dollop_tests::set;
use dollop_tests::tiny::Tiny;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The most that parsing may allocate: this many times the input, plus a little for tables of fixed size.
const ALLOC_FACTOR: usize = 24;
const ALLOC_FIXED: usize = 1 << 16;
/// Far above the time of any mutant: this finds endless loops, not slowness. If the machine stalls, a mutant
/// is tried again.
const MUTANT_TIME: Duration = Duration::from_secs(5);
const TRIES: usize = 4;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Values that break unchecked arithmetic.
const ABSURD: [u64; 14] = [
    0,
    1,
    3,
    255,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 33,
    1 << 48,
    u64::MAX >> 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

/// Changes `bytes` within its first `head` bytes, one to four times, and sometimes truncates it.
fn mutate(bytes: &mut Vec<u8>, head: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        let head = head.min(bytes.len());
        if head == 0 {
            return;
        }
        let at = rng.below(head);
        match rng.below(10) {
            0 | 1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.number() as u8,
            3 | 4 => {
                let value = ABSURD[rng.below(ABSURD.len())].to_le_bytes();
                let n = [4, 8][rng.below(2)].min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&value[..n]);
            }
            // A small change to a valid number: off by one finds other bugs than absurd values do.
            5 => bytes[at] = bytes[at].wrapping_add([1, 255, 2, 254][rng.below(4)]),
            6 => {
                let (from, n) = (rng.below(head), 1 + rng.below(24));
                let n = n.min(bytes.len() - at).min(bytes.len() - from);
                bytes.copy_within(from..from + n, at);
            }
            7 => {
                let n = (1 + rng.below(16)).min(bytes.len() - at);
                bytes.drain(at..at + n);
            }
            8 => {
                let n = (1 + rng.below(16)).min(bytes.len() - at);
                let copy = bytes[at..at + n].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                // Truncations are mostly within the header, where each one is a different error.
                let keep = if rng.below(4) == 0 { rng.below(bytes.len()) } else { at };
                bytes.truncate(keep);
            }
        }
    }
}

/// Replaces numbers, words and punctuation of a JSON text, so that most mutants still parse as JSON.
fn mutate_json(text: &mut Vec<u8>, rng: &mut Rng) {
    const WORDS: [&str; 12] = [
        "0",
        "-1",
        "1e400",
        "18446744073709551615",
        "4294967296",
        "0.5",
        "null",
        "true",
        "[]",
        "{}",
        "\"x\"",
        "[[1]]",
    ];
    for _ in 0..1 + rng.below(3) {
        let number = |b: u8| b.is_ascii_digit() || b == b'.' || b == b'-';
        let starts: Vec<usize> =
            (1..text.len()).filter(|&i| number(text[i]) && !number(text[i - 1])).collect();
        if starts.is_empty() {
            return;
        }
        let at = starts[rng.below(starts.len())];
        let end = (at..text.len()).find(|&i| !number(text[i])).unwrap_or(text.len());
        let word = WORDS[rng.below(WORDS.len())].bytes();
        text.splice(at..end, word);
    }
}

/// The numbers of results for the mutants of one kind.
#[derive(Default)]
struct Tally {
    mutants: usize,
    refused: usize,
    most_bytes: usize,
    slowest: Duration,
}

/// Runs `parse` on `n` mutants of `original`. It returns whether bytes were accepted; its errors must be texts.
fn torment(
    name: &str,
    original: &[u8],
    n: usize,
    mutate: &dyn Fn(&mut Vec<u8>, &mut Rng),
    parse: &dyn Fn(Vec<u8>) -> Result<(), dollop::Error>,
) {
    parse(original.to_vec()).unwrap_or_else(|e| panic!("{name}: the original is refused: {e}"));
    let mut tally = Tally::default();
    let start = Instant::now();
    for i in 0..n {
        let seed = (i as u64) << 8 | name.len() as u64;
        let mut bytes = original.to_vec();
        mutate(&mut bytes, &mut Rng(seed));
        let len = bytes.len().max(1);
        let timed = |bytes| {
            let clock = Instant::now();
            (catch_unwind(AssertUnwindSafe(|| parse(bytes))), clock.elapsed())
        };
        let ((result, mut took), used) = most_allocated(|| timed(bytes));
        for _ in 0..TRIES {
            if took >= MUTANT_TIME {
                let mut bytes = original.to_vec();
                mutate(&mut bytes, &mut Rng(seed));
                took = timed(bytes).1;
            }
        }
        let result = result.unwrap_or_else(|_| panic!("{name}: mutant {seed:#x} panicked"));
        assert!(took < MUTANT_TIME, "{name}: mutant {seed:#x} took {took:?}");
        assert!(
            used <= ALLOC_FACTOR * len + ALLOC_FIXED,
            "{name}: mutant {seed:#x} of {len} bytes allocated {used}"
        );
        if let Err(e) = result {
            let text = e.to_string();
            assert!(!text.is_empty() && text.len() < 4096 + len, "{name}: mutant {seed:#x}: {text}");
            tally.refused += 1;
        }
        tally.mutants += 1;
        tally.most_bytes = tally.most_bytes.max(used);
        tally.slowest = tally.slowest.max(took);
    }
    println!(
        "{name}: {} mutants of {} bytes, {} refused, at most {} bytes allocated, slowest {:?}, all {:?}",
        tally.mutants,
        original.len(),
        tally.refused,
        tally.most_bytes,
        tally.slowest,
        start.elapsed()
    );
    assert_eq!(tally.mutants, n);
    // Some mutants change nothing that matters, but a parser that refuses few of them checks little.
    assert!(tally.refused * 5 > n, "{name}: only {} of {n} mutants were refused", tally.refused);
}

/// Keys of every kind, among them a small vocabulary, on top of a real model's.
fn with_all_kinds(tiny: &Tiny) -> Metadata {
    let mut meta = families::metadata_from_config(&tiny.config.to_string()).unwrap();
    meta.insert("test.f64", Value::F64(0.25));
    meta.insert("test.i64", Value::Signed(-7, Width::W64));
    meta.insert("test.u8", Value::Unsigned(7, Width::W8));
    meta.insert("test.bools", vec![true, false, true]);
    meta.insert("test.texts", (0..60).map(|i| format!("token {i}")).collect::<Vec<_>>());
    meta.insert("test.scores", Value::Array(Array::F32(vec![0.5; 60])));
    meta.insert("test.types", vec![1u64; 60]);
    meta
}

/// A GGUF file with a few blocks of every element type.
fn every_type(meta: &Metadata) -> Vec<u8> {
    let decl = |ty: &GgmlType| TensorDecl {
        name: format!("blk.0.{ty}.weight"),
        shape: vec![ty.block_len() as u64, 2],
        ty: *ty,
    };
    let decls: Vec<_> = GgmlType::ALL.iter().map(decl).collect();
    let mut w = GgufWriter::new(std::io::Cursor::new(Vec::new()), meta, &decls, 32).unwrap();
    for (i, t) in decls.iter().enumerate() {
        w.write(i, 0, &vec![0x3c; t.n_bytes() as usize]).unwrap();
    }
    w.finish().unwrap().into_inner()
}

/// The parsing that a runner does before it touches weights.
fn parse_gguf(bytes: &[u8]) -> Result<(), dollop::Error> {
    let gguf = Gguf::parse(bytes)?;
    for t in &gguf.tensors {
        let data = &bytes[t.offset as usize..(t.offset + t.n_bytes) as usize];
        if t.ty.is_float() {
            let n = (data.len() / t.ty.block_bytes()).min(4);
            t.ty.dequantize(&data[..n * t.ty.block_bytes()], &mut vec![0.0; n * t.ty.block_len()])?;
        }
    }
    Spec::from_metadata(&gguf.metadata).map(drop)
}

fn parse_dollop(bytes: Bytes) -> Result<(), dollop::Error> {
    let file = NestedFile::new(bytes)?;
    let spec = Spec::from_metadata(&file.directory().gguf.metadata)?;
    let (weights, experts) = Weights::load(&spec, &file, None)?;
    assert!(weights.vocab() > 0 && experts.len() == spec.layers.len());
    file.sizes();
    file.verify()
}

// One test, so that no other test allocates meanwhile.
#[test]
fn mutants_are_refused_in_one_line() {
    let ((), used) = most_allocated(|| drop(std::hint::black_box(vec![1u8; 1 << 20])));
    assert!(used >= 1 << 20, "the allocator does not count");

    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tiny = Tiny::load("olmoe");
    tiny.write_gguf_with(&at("m.gguf"), &with_all_kinds(&tiny));
    tiny.write_folder(folder.path());
    let options = ConvertOptions::default().with_threads(1);
    convert(&at("m.gguf"), &at("m.dollop"), &options, &CancelToken::default(), &mut |_| {}).unwrap();
    let options = set!(ConvertOptions { size: Some(Size::Bits(3.2)), ..options });
    convert(&at("m.gguf"), &at("m.uneven"), &options, &CancelToken::default(), &mut |_| {}).unwrap();
    let read = |name: &str| std::fs::read(at(name)).unwrap();

    // A large header and hardly any data, so that the bound on memory is tight; then the file of a real model.
    let small = every_type(&with_all_kinds(&tiny));
    torment("small gguf", &small, 40_000, &|b, r| mutate(b, usize::MAX, r), &|b| parse_gguf(&b));
    let gguf = read("m.gguf");
    let data = Gguf::parse(&gguf).unwrap().data_start as usize;
    torment("gguf", &gguf, 6_000, &|b, r| mutate(b, data, r), &|b| parse_gguf(&b));

    for (name, what) in
        [("m.dollop", "dollop file"), ("m.uneven", "dollop file, experts of different levels")]
    {
        let nested = read(name);
        let directory = Directory::parse(&nested).unwrap();
        assert_eq!(directory.is_uneven(), name == "m.uneven");
        let head = directory.gguf.data_start as usize;
        torment(what, &nested, 6_000, &|b, r| mutate(b, head, r), &|b| parse_dollop(Bytes::from(b)));
    }
    // Layers of two kinds.
    Tiny::load("lfm2moe").write_gguf(&at("mixed.gguf"));
    convert(&at("mixed.gguf"), &at("mixed.dollop"), &options, &CancelToken::default(), &mut |_| {}).unwrap();
    let nested = read("mixed.dollop");
    let head = Directory::parse(&nested).unwrap().gguf.data_start as usize;
    torment("dollop file of mixed layers", &nested, 3_000, &|b, r| mutate(b, head, r), &|b| {
        parse_dollop(Bytes::from(b))
    });
    // Tensors that contain several, head by head, with sizes from the file's keys.
    for golden in ["qwen3next", "kimi-linear", "deepseek2-v3"] {
        let tiny = Tiny::load(golden);
        match golden {
            "deepseek2-v3" => tiny.write_old_gguf(&at("parts.gguf")),
            _ => tiny.write_gguf(&at("parts.gguf")),
        }
        convert(&at("parts.gguf"), &at("parts.dollop"), &options, &CancelToken::default(), &mut |_| {})
            .unwrap();
        let nested = read("parts.dollop");
        let head = Directory::parse(&nested).unwrap().gguf.data_start as usize;
        let what = format!("dollop file of {golden}");
        torment(&what, &nested, 3_000, &|b, r| mutate(b, head, r), &|b| parse_dollop(Bytes::from(b)));
        let parts = read("parts.gguf");
        let head = Gguf::parse(&parts).unwrap().data_start as usize;
        torment("gguf of parts", &parts, 300, &|b, r| mutate(b, head, r), &|b| {
            std::fs::write(at("mutant.gguf"), &b).unwrap();
            let source = Source::open(&at("mutant.gguf"))?;
            for name in source.names().filter(|name| name.contains("attn_") || name.contains("ssm_")) {
                let rows = source.rows(name).unwrap_or(1);
                source.raw_rows(name, 0, 0..rows)?;
            }
            Spec::from_metadata(source.metadata()).map(drop)
        });
    }

    let tensors = read("model.safetensors");
    let head = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let parse = |b: Vec<u8>| {
        for entry in safetensors::parse(&b)? {
            let data = &b[entry.offset as usize..(entry.offset + entry.n_bytes) as usize];
            assert_eq!(entry.ty.row_bytes(entry.shape.iter().product()), Some(data.len()));
            for dialect in families::FAMILIES.iter().flat_map(|f| f.dialects) {
                hf::places(&entry.name, dialect);
            }
        }
        Ok(())
    };
    torment("safetensors", &tensors, 5_000, &|b, r| mutate(b, head, r), &parse);
    let numbers = |b: &mut Vec<u8>, r: &mut Rng| {
        let mut header = b[8..head].to_vec();
        mutate_json(&mut header, r);
        b.splice(8..head, header.iter().copied());
        b[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
    };
    torment("safetensors numbers", &tensors, 5_000, &numbers, &parse);

    // Codes and scales that belong together, and rows that are gathered.
    let packed = tempfile::tempdir().unwrap();
    let place = packed.path().join("model.safetensors");
    Tiny::load("gptoss-mxfp4").write_folder(packed.path());
    let blocks = std::fs::read(&place).unwrap();
    let head = 8 + u64::from_le_bytes(blocks[..8].try_into().unwrap()) as usize;
    convert(packed.path(), &at("tables.dollop"), &options, &CancelToken::default(), &mut |_| {}).unwrap();
    let nested = read("tables.dollop");
    let in_head = Directory::parse(&nested).unwrap().gguf.data_start as usize;
    torment("dollop file of tables", &nested, 3_000, &|b, r| mutate(b, in_head, r), &|b| {
        parse_dollop(Bytes::from(b))
    });
    let open = |b: Vec<u8>| {
        std::fs::write(&place, b).unwrap();
        let source = Source::open(packed.path())?;
        for name in source.names() {
            let shape = source.shape(name).unwrap();
            let rows = if shape.len() == 1 { 1 } else { shape[shape.len() - 2] };
            let mut out = vec![0.0; *shape.last().unwrap()];
            source.read_rows(name, 0, rows - 1..rows, &mut out)?;
        }
        Ok(())
    };
    torment("packed safetensors", &blocks, 1_000, &|b, r| mutate(b, head, r), &open);
    let numbers = |b: &mut Vec<u8>, r: &mut Rng| {
        let mut header = b[8..head].to_vec();
        mutate_json(&mut header, r);
        b.splice(8..head, header.iter().copied());
        b[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
    };
    torment("packed safetensors' numbers", &blocks, 1_000, &numbers, &open);

    let index: String = (tiny.tensors.iter().enumerate())
        .map(|(i, t)| format!("\"{}\":\"model-0000{}-of-00002.safetensors\",", t.0, 1 + i % 2))
        .collect();
    let index =
        format!("{{\"metadata\":{{\"total_size\":1}},\"weight_map\":{{{}}}}}", index.trim_end_matches(','));
    torment("safetensors index", index.as_bytes(), 6_000, &|b, r| mutate(b, usize::MAX, r), &|b| {
        let files = safetensors::shards(&String::from_utf8_lossy(&b))?;
        assert!(files.iter().all(|f| !f.contains(['/', '\\']) && f != ".."));
        Ok(())
    });

    let configs = ["gptoss-listed", "olmoe-clip", "qwen2moe-mlp-only-window", "llama-llama3", "llama-yarn"];
    let others = ["gemma3-sight", "gemma4-sight", "gemma4-inputs", "lfm2-bias", "lfm2moe"];
    let hybrids = [
        "qwen3next",
        "qwen35moe-published",
        "kimi-linear",
        "kimi-linear-resaved",
        "bailingmoe3",
        "granitehybrid",
        "nemotronh",
        "nemotronh-groups",
    ];
    let latents = ["deepseek2-lite", "deepseek2-flash", "glm4moe-groups"];
    let routed = [
        "bailingmoe2",
        "granitemoe-shared",
        "mellum",
        "ernie4_5moe",
        "hunyuanmoe-alpha",
        "hunyuanmoe",
        "afmoe",
        "phimoe",
        "smallthinker",
        "laguna",
        "grovemoe",
    ];
    for golden in configs.into_iter().chain(others).chain(hybrids).chain(latents).chain(routed) {
        let config = Tiny::load(golden).config.to_string();
        let parse = |b: Vec<u8>| {
            let meta = families::metadata_from_config(&String::from_utf8_lossy(&b))?;
            Spec::from_metadata(&meta).map(drop)
        };
        torment(golden, config.as_bytes(), 2_000, &|b, r| mutate(b, usize::MAX, r), &parse);
        torment(golden, config.as_bytes(), 2_000, &|b, r| mutate_json(b, r), &parse);
    }
    // The small files beside the weights, with numbers that are valid only in Python's JSON.
    let small = r#"{"eos_token": {"content": "<|end|>"}, "bos_token": "<s>", "add_bos_token": true, "model_max_length": Infinity,
        "eos_token_id": [1, 2], "chat_template": [{"name": "default", "template": "{{ x }}"}], "x": NaN, "do_sample": true, "temperature": 0.6,
        "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "sequence": "top_k;temperature"}"#;
    let parse = |b: Vec<u8>| {
        let text = String::from_utf8_lossy(&b);
        let files = hf::SmallFiles {
            config: "{}",
            tokenizer: Some(&text),
            special: Some(&text),
            generation: Some(&text),
        };
        hf::special_tokens(&mut Metadata::new(), files, &|_| Some(1))?;
        let mut meta = Metadata::new();
        hf::sampling(&mut meta, &text)?;
        let advice = dollop::internal::model::sampling::advice(&meta);
        advice.sampling.validate().expect("bad advice is left out");
        hf::chat_template("tokenizer_config.json", &text).map(drop)
    };
    torment("small files", small.as_bytes(), 2_000, &|b, r| mutate(b, usize::MAX, r), &parse);
    torment("small files", small.as_bytes(), 2_000, &|b, r| mutate_json(b, r), &parse);

    for (name, original) in [("imatrix", "small.gguf"), ("imatrix dat", "small.dat")] {
        let bytes = std::fs::read(golden("imatrix").join(original)).unwrap();
        // Half of the mutants of the older format only change an energy, because it has few names and numbers.
        torment(name, &bytes, 6_000, &|b, r| mutate(b, 4096, r), &|b| imatrix::parse(&b, original).map(drop));
    }

    // The same through files, with every row read: an opened view must be readable to its last byte. One file
    // has stacks of gate and up together.
    Tiny::load("gemma4").write_gguf(&at("fused.gguf"));
    let fused = read("fused.gguf");
    let fused_data = Gguf::parse(&fused).unwrap().data_start as usize;
    for (name, original, head) in [
        ("file.gguf", &gguf, data),
        ("fused.gguf", &fused, fused_data),
        ("model.safetensors", &tensors, head),
    ] {
        let target = if name.ends_with(".gguf") { at(name) } else { folder.path().to_path_buf() };
        torment(name, original, 600, &|b, r| mutate(b, head, r), &|b| {
            // The mutant is kept until the end, so that freeing it does not reduce what the parser allocated.
            std::fs::write(at(name), &b).unwrap();
            let source = Source::open(&target)?;
            let names: Vec<String> = source.names().map(str::to_owned).collect();
            for tensor in &names {
                let (experts, rows) = match *source.shape(tensor).unwrap() {
                    [experts, rows, _] => (experts, rows),
                    [rows, _] => (1, rows),
                    _ => (1, 1),
                };
                for expert in [0, experts - 1] {
                    source.raw_rows(tensor, expert, 0..rows)?;
                    assert!(source.raw_rows(tensor, expert, rows..rows + 1).is_err());
                }
                assert!(source.raw_rows(tensor, experts, 0..1).is_err());
                source.release(tensor);
            }
            Ok(())
        });
    }
}
