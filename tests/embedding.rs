//! Gate 58: an embedding that is not in memory. If experts are streamed on the CPU and the output head is a
//! separate matrix, tokens' rows are read from the file. Logits equal those of the resident model, the plan
//! gives the memory to experts, and faults are errors or retries.

use dollop::Level;
use dollop::convert::{ConvertOptions, Group, GroupParams, convert};
use dollop::internal::GpuFault;
use dollop::internal::Trace;
use dollop::internal::format::{TensorInfo, dollop::Directory};
use dollop::internal::sched::{Precision, Verify};
use dollop::internal::store::{Access, FileStorage, Storage};
use dollop::{BackendChoice, Engine, EngineOptions, Error, MemoryPlan, Session, SessionOptions, StreamStats};
use dollop_tests::{has_gpu, set, tiny::Tiny};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Not a multiple of a tile's 16 rows.
const VOCAB: usize = 1003;

/// A prompt with more tokens than reads are submitted at a time.
const PROMPT: usize = 200;

const CONTEXT: usize = 256;

/// A tiny model with many experts, a larger vocabulary and a longer context, without reference logits.
fn model(name: &str) -> Tiny {
    let mut tiny = Tiny::load(name).with_experts(32);
    tiny.config["vocab_size"] = VOCAB.into();
    tiny.config["max_position_embeddings"] = CONTEXT.into();
    for (name, shape, data) in &mut tiny.tensors {
        if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
            shape[0] = VOCAB;
            let few = data.clone();
            // The same values again, in other rows and with other magnitudes.
            data.extend(
                few.iter().cycle().skip(7).step_by(3).take(VOCAB * shape[1] - few.len()).map(|x| 1.1 * x),
            );
        }
    }
    tiny
}

fn converted(tiny: &Tiny, options: &ConvertOptions) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let path = folder.path().join("tiny.gguf");
    convert(folder.path(), &path, options, &Default::default(), &mut |_| ()).unwrap();
    (folder, path)
}

fn options() -> EngineOptions {
    set!(EngineOptions {
        threads: 2,
        precision: Some(Precision::Exact(Level::B4)),
        context: Some(CONTEXT),
        chunk: Some(PROMPT),
        ..EngineOptions::default()
    })
}

fn plan(path: &Path, o: &EngineOptions, memory: Option<u64>) -> dollop::Result<MemoryPlan> {
    Engine::plan(path, &set!(EngineOptions { memory, ..o.clone() }))
}

fn smallest(path: &Path, o: &EngineOptions) -> u64 {
    match plan(path, o, Some(1)) {
        Err(Error::Budget { smallest, .. }) => smallest,
        other => panic!("a budget of one byte: {other:?}"),
    }
}

/// With room for about `share` of the experts.
fn streamed(path: &Path, share: f64) -> EngineOptions {
    streamed_with(path, share, options())
}

fn streamed_with(path: &Path, share: f64, mut o: EngineOptions) -> EngineOptions {
    let least = smallest(path, &o);
    let experts = plan(path, &o, None).unwrap().expert_bytes;
    o.memory = Some(least + (share * experts as f64) as u64);
    o
}

fn open(path: &Path, o: &EngineOptions) -> Engine {
    Engine::open(path, o).unwrap()
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

fn stats(engine: &Engine) -> StreamStats {
    engine.stream_stats().expect("this engine streams")
}

/// Ids from the whole vocabulary, including the first and the last, some of them repeated.
fn tokens(n: usize) -> Vec<u32> {
    let token = |i: usize| match i % 7 {
        0 => 17,
        1 => (VOCAB - 1 - i / 100) as u32,
        2 => i as u32 / 60,
        _ => (i as u32).wrapping_mul(2_654_435_761) % VOCAB as u32,
    };
    (0..n).map(token).collect()
}

/// Logits of a prompt in one chunk, then token by token.
fn logits(session: &mut Session) -> Vec<Vec<f32>> {
    let ids = tokens(PROMPT + 20);
    let mut all = session.logits(&ids[..PROMPT]).unwrap();
    ids[PROMPT..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

/// The tensor with the embedding's planes.
fn embedding(path: &Path) -> TensorInfo {
    let bytes = std::fs::read(path).unwrap();
    let directory = Directory::parse(&bytes).unwrap();
    directory.gguf.tensors.into_iter().find(|t| t.name == "token_embd.planes").unwrap()
}

#[test]
fn gate_58_rows_that_are_read_are_those_that_are_held() {
    let level = |level_embed, group, params| {
        set!(ConvertOptions {
            level_embed: Some(level_embed),
            group,
            params,
            max_level: Level::B4,
            ..ConvertOptions::default()
        })
    };
    for (name, convert) in [
        ("olmoe", level(Level::B8, Group::G64, GroupParams::Wide)),
        ("qwen3moe", level(Level::B6, Group::G32, GroupParams::Narrow)),
        ("qwen2moe", level(Level::B3, Group::G64, GroupParams::Narrow)),
    ] {
        let (_folder, path) = converted(&model(name), &convert);
        let resident = open(&path, &options());
        assert!(!resident.memory_plan().streaming && resident.memory_plan().unheld_embedding_bytes == 0);
        let want = logits(&mut session(&resident));
        for (share, chunk, threads) in [(0.0, PROMPT, 1), (0.3, 77, 2), (0.8, PROMPT, 3)] {
            let o = set!(EngineOptions { threads, chunk: Some(chunk), ..options() });
            let o = streamed_with(&path, share, o);
            let engine = open(&path, &o);
            assert!(engine.memory_plan().unheld_embedding_bytes > 0 && stats(&engine).bytes_embedding == 0);
            assert!(logits(&mut session(&engine)) == want, "{name}, share {share}: logits differ");
            let s = stats(&engine);
            assert!(s.bytes_wanted > 0 && s.bytes_embedding > 0 && s.retries == 0, "{s:?}");
        }
    }
}

#[test]
fn gate_58_a_tile_is_read_once_for_all_that_ask_for_it() {
    let (_folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let mut o = streamed(&path, 0.5);
    let trace = Arc::new(Trace::default());
    o.streaming.trace = Some(trace.clone());
    let engine = open(&path, &o);
    let mut session = session(&engine);
    let mut read = |ids: &[u32]| {
        let before = stats(&engine).bytes_embedding;
        session.rewind(0);
        session.logits(ids).unwrap();
        stats(&engine).bytes_embedding - before
    };
    let one = read(&[20]);
    // 64 columns at 8 bits, an f16 and a byte for the group, 16 rows.
    assert_eq!(one, 16 * (64 + 3));
    assert_eq!(read(&[16, 31, 20, 16, 20]), one, "one tile");
    assert_eq!(read(&[15, 16, 31, 32]), 3 * one, "three tiles");
    assert_eq!(read(&[20; PROMPT]), PROMPT.div_ceil(64) as u64 * one, "once for 64 tokens");
    assert_eq!(read(&[VOCAB as u32 - 1]), one, "the last tile");
    assert!(trace.to_json().contains("reading the embedding"));
    assert!(session.logits(&[VOCAB as u32]).is_err(), "a token outside the vocabulary");
}

#[test]
fn gate_58_a_plan_without_the_embedding_is_smaller_by_it() {
    let (_folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let o = options();
    let (whole, least) = (plan(&path, &o, None).unwrap(), smallest(&path, &o));
    assert!(!whole.streaming && whole.unheld_embedding_bytes == 0);
    let with = |memory| plan(&path, &o, Some(memory)).unwrap();
    // Every matrix may take this much beside its bytes for cache-line alignment.
    let embedding = embedding(&path).n_bytes + 5 * 64;
    for memory in [least, least + 50_000, whole.total_bytes() - 1] {
        let p = with(memory);
        assert!(p.streaming && p.unheld_embedding_bytes == embedding, "{p:?}");
        assert_eq!(p.dense_bytes, whole.dense_bytes - embedding);
        assert_eq!((p.kv_bytes, p.scratch_bytes), (whole.kv_bytes, whole.scratch_bytes));
        // Buffers for reading rows: a tile, whose scales and zero points are aligned to cache lines, and a row.
        assert_eq!(p.overhead_bytes, whole.overhead_bytes + 16 * 64 + 2 * 64 + 4 * 64);
        assert_eq!(p.total_bytes(), memory, "all of it is spent");
    }
    assert!(plan(&path, &o, Some(least - 1)).is_err());
    // If everything fits with the embedding, nothing is streamed.
    assert_eq!(
        with(whole.total_bytes()),
        set!(MemoryPlan { budget: Some(whole.total_bytes()), ..whole.clone() })
    );
    // A device has a copy of it.
    let gpu = o.clone().with_backend(BackendChoice::Gpu(None));
    let p = plan(&path, &gpu, Some(smallest(&path, &gpu))).unwrap();
    assert!(p.streaming && p.unheld_embedding_bytes == 0 && p.dense_bytes > whole.dense_bytes, "{p:?}");
}

#[test]
fn gate_58_a_head_that_is_the_embedding_is_held_and_so_is_all_of_a_dense_model() {
    let (_folder, path) = converted(&model("qwen2moe-norm-tied"), &ConvertOptions::default());
    let (whole, o) = (plan(&path, &options(), None).unwrap(), streamed(&path, 0.3));
    let engine = open(&path, &o);
    let p = engine.memory_plan();
    assert!(p.streaming && p.unheld_embedding_bytes == 0, "{p:?}");
    assert_eq!((p.dense_bytes, p.overhead_bytes), (whole.dense_bytes, whole.overhead_bytes));
    let want = logits(&mut session(&open(&path, &options())));
    assert!(logits(&mut session(&engine)) == want && stats(&engine).bytes_embedding == 0);

    let (_folder, path) = converted(&Tiny::load("llama"), &ConvertOptions::default());
    let o = set!(EngineOptions { context: Some(64), precision: None, ..options() });
    let least = smallest(&path, &o);
    let p = plan(&path, &o, Some(least)).unwrap();
    assert!(!p.streaming && p.unheld_embedding_bytes == 0, "{p:?}");
    assert_eq!(p.dense_bytes, plan(&path, &o, None).unwrap().dense_bytes);
}

#[test]
fn gate_58_a_processor_that_takes_over_holds_it() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let gpu = options().with_backend(BackendChoice::Gpu(None));
    let engine = open(&path, &streamed_with(&path, 0.5, gpu));
    assert!(engine.memory_plan().streaming && engine.gpu_stats().is_some());
    let (ids, mut session) = (tokens(30), session(&engine));
    session.logits(&ids[..20]).unwrap();
    engine.lose_gpu(0, GpuFault::Lost);
    let logits = session.logits(&ids[20..]).unwrap();
    assert!(engine.lost().is_some());
    let (p, whole) = (engine.memory_plan(), plan(&path, &options(), None).unwrap());
    assert_eq!((p.unheld_embedding_bytes, p.dense_bytes), (0, whole.dense_bytes));
    assert!(stats(&engine).bytes_embedding == 0 && stats(&engine).bytes_wanted > 0);
    // In pieces of the same length, which matters with AMX.
    let mut never = self::session(&open(&path, &options()));
    never.logits(&ids[..20]).unwrap();
    assert!(logits == never.logits(&ids[20..]).unwrap());
}

/// Faults of reads of the embedding.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// Every third read fails or is short; the retry succeeds.
    Hiccups,
    Fails,
    Ends,
}

struct Faulty {
    file: FileStorage,
    embedding: Range<u64>,
    fault: AtomicU32,
    reads: AtomicU32,
}

impl Faulty {
    fn set(&self, fault: Fault) {
        self.fault.store(fault as u32, Ordering::Relaxed);
    }
}

impl Storage for Faulty {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        let fault = self.fault.load(Ordering::Relaxed);
        if fault == Fault::None as u32 || !self.embedding.contains(&offset) {
            return self.file.read_at(offset, to);
        }
        if fault == Fault::Fails as u32 {
            return Err(io::Error::other("EIO"));
        }
        if fault == Fault::Ends as u32 {
            return Ok(0);
        }
        match self.reads.fetch_add(1, Ordering::Relaxed) % 3 {
            0 => Err(io::Error::other("a hiccup")),
            1 => self.file.read_at(offset, &mut to[..1]),
            _ => self.file.read_at(offset, to),
        }
    }

    fn access(&self) -> Access {
        self.file.access()
    }
}

#[test]
fn gate_58_faults_are_retried_or_errors_and_the_session_goes_on() {
    let (_folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let want = logits(&mut session(&open(&path, &options())));
    let tensor = embedding(&path);
    let storage = Arc::new(Faulty {
        file: FileStorage::open(&path, true).unwrap(),
        embedding: tensor.offset..tensor.offset + tensor.n_bytes,
        fault: AtomicU32::default(),
        reads: AtomicU32::default(),
    });
    let mut o = streamed(&path, 0.3);
    o.streaming.storage = Some(storage.clone());
    let engine = open(&path, &o);
    storage.set(Fault::Hiccups);
    assert!(logits(&mut session(&engine)) == want);
    assert!(stats(&engine).retries > 0 && storage.reads.load(Ordering::Relaxed) > 100);

    storage.set(Fault::None);
    let mut session = session(&engine);
    let ids = tokens(PROMPT + 20);
    let mut all = session.logits(&ids[..PROMPT]).unwrap();
    for (fault, says) in [(Fault::Fails, "EIO"), (Fault::Ends, "ends here")] {
        storage.set(fault);
        let before = stats(&engine).bytes_wanted;
        // One token, and enough for several rounds.
        for n in [1, 20] {
            match session.logits(&ids[PROMPT..][..n]) {
                Err(e @ Error::Io { .. }) => {
                    let text = e.to_string();
                    assert!(text.contains(says) && text.contains("tiny.gguf"), "{fault:?}: {text}");
                }
                other => panic!("{fault:?}: {other:?}"),
            }
            assert_eq!(session.tokens().len(), PROMPT, "{fault:?}");
        }
        assert_eq!(stats(&engine).bytes_wanted, before, "no expert was asked for");
        storage.set(Fault::None);
    }
    ids[PROMPT..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    assert!(all == want, "wrong logits after a failure");
}

#[test]
fn gate_58_a_file_that_is_cut_while_open_is_an_error_and_not_the_end() {
    let (folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let kept = folder.path().join("kept.gguf");
    std::fs::copy(&path, &kept).unwrap();
    let engine = open(&path, &streamed(&path, 0.3));
    let mut session = session(&engine);
    let ids = tokens(40);
    session.logits(&ids[..2]).unwrap();
    let before = stats(&engine).bytes_wanted;
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    // With a mapping instead of reads, this would end the process.
    let text = session.logits(&ids[2..]).unwrap_err().to_string();
    assert!(text.contains("tiny.gguf") && text.contains("ends here"), "{text}");
    assert_eq!((session.tokens().len(), stats(&engine).bytes_wanted), (2, before));
    std::fs::copy(&kept, &path).unwrap();
    session.logits(&ids[2..]).unwrap();
}

#[test]
fn gate_58_an_embedding_that_is_damaged_is_found_when_it_is_opened() {
    let (_folder, path) = converted(&model("olmoe"), &ConvertOptions::default());
    let mut o = streamed(&path, 0.3);
    let tensor = embedding(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(tensor.offset + tensor.n_bytes - 100) as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let text = Engine::open(&path, &o).err().unwrap().to_string();
    assert!(text.contains("tiny.gguf") && text.contains("token_embd.planes"), "{text}");
    o.streaming.verify = Verify::Never;
    session(&open(&path, &o)).logits(&tokens(4)).unwrap();
}
