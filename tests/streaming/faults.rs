//! Gate 15: storage faults. A transient fault is retried and changes nothing; a permanent one is an error,
//! and the session continues from the same state.

use super::*;
use dollop::internal::sched::Verify;
use dollop::internal::store::Storage;
use std::collections::HashSet;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A fault of a read. Arguments: the number of distinct offsets read before, if this one is new (after a
/// fault, an offset is read again, on any lane), the bytes, and their count.
type Fault = fn(Option<u64>, &mut [u8], usize) -> io::Result<usize>;

fn every(n: Option<u64>, k: u64) -> bool {
    n.is_some_and(|n| n.is_multiple_of(k))
}

/// A file that injects faults on demand.
struct Faulty {
    file: FileStorage,
    places: Mutex<HashSet<u64>>,
    kind: Fault,
    on: AtomicBool,
}

impl Storage for Faulty {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(offset, to)?;
        let mut places = self.places.lock().unwrap();
        let nth = places.insert(offset).then(|| places.len() as u64 - 1);
        drop(places);
        if self.on.load(Ordering::Relaxed) { (self.kind)(nth, to, n) } else { Ok(n) }
    }

    fn access(&self) -> Access {
        self.file.access()
    }
}

fn faulty(o: &EngineOptions, kind: Fault) -> (Engine, Arc<Faulty>) {
    let file = FileStorage::open(&default_model(), true).unwrap();
    let storage = Arc::new(Faulty { file, places: Mutex::default(), kind, on: AtomicBool::new(true) });
    let streaming = set!(StreamingOptions { storage: Some(storage.clone()), ..o.streaming.clone() });
    (open(&set!(EngineOptions { streaming, ..o.clone() })), storage)
}

#[test]
fn gate_15_transient_faults_are_retried_and_change_nothing() {
    let mut o = with_share(options(Precision::Exact(Level::B4)), 0.4);
    o.streaming.verify = Verify::Always;
    let want = logits(&open(&o));
    let kinds: [(&str, Fault, bool); 3] = [
        ("short reads", |n, _, got| Ok(if every(n, 3) { (got / 2).max(1) } else { got }), false),
        (
            "every seventh place fails",
            |n, _, got| if every(n, 7) { Err(io::Error::other("EIO")) } else { Ok(got) },
            true,
        ),
        (
            "every ninth place is damaged on its way",
            |n, to, got| {
                if every(n, 9) {
                    to[got / 2] ^= 1;
                }
                Ok(got)
            },
            true,
        ),
    ];
    for (name, kind, retried) in kinds {
        let (engine, _) = faulty(&o, kind);
        assert!(logits(&engine) == want, "{name}");
        assert_eq!(stats(&engine).retries > 0, retried, "{name}: {:?}", stats(&engine));
    }
}

#[test]
fn gate_15_reads_that_come_late_change_nothing() {
    let o = with_share(options(Precision::Exact(Level::B4)), 0.4);
    let want = logits(&open(&o));
    let (engine, file) = open_held(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let (ids, waits) = (tokens(), || engine.streamer().unwrap().waits());
    let (mut all, mut late) = (Vec::new(), 0);
    for call in std::iter::once(&ids[..20]).chain(ids[20..].chunks(1)) {
        all.extend(file.late(&waits, || session.logits(call).unwrap(), || late += 1));
    }
    file.hold(false);
    assert!(all == want, "late reads change a result");
    assert!(late > 4 && file.stopped() >= late, "{late} calls waited for reads that were held back");
}

#[test]
fn gate_15_lasting_faults_are_errors_and_the_session_goes_on() {
    let kinds: [(&str, &str, Fault); 3] = [
        ("the device is gone", "EIO", |_, _, _| Err(io::Error::other("EIO"))),
        ("damaged for good", "checksum", |_, to, got| {
            to[got / 3] ^= 0x40;
            Ok(got)
        }),
        ("cut while open", "ends here", |_, _, _| Ok(0)),
    ];
    for precision in [Precision::Exact(Level::B4), Precision::Adaptive { quality: 3.5, floor: Level::B3 }] {
        let mut o = with_share(options(precision), 0.4);
        o.streaming.verify = Verify::Always;
        let want = logits(&open(&o));
        o.routing.lookahead = if matches!(precision, Precision::Exact(_)) { 8 } else { 0 };
        for (name, says, kind) in kinds {
            let (engine, storage) = faulty(&o, kind);
            storage.on.store(false, Ordering::Relaxed);
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let ids = tokens();
            let mut all = session.logits(&ids[..20]).unwrap();
            all.extend(session.logits(&ids[20..21]).unwrap());
            storage.on.store(true, Ordering::Relaxed);
            let mut failures = 0;
            for &id in &ids[21..24] {
                match session.logits(&[id]) {
                    Err(e @ Error::Io { .. }) => {
                        let text = e.to_string();
                        assert!(text.contains(says) && text.contains("smollm2-moe"), "{name}: {text}");
                        failures += 1;
                    }
                    Err(e) => panic!("{name}: {e}"),
                    // Possibly everything was resident.
                    Ok(_) => drop(session.rewind(21)),
                }
            }
            assert!(failures > 0 && session.tokens().len() == 21, "{name}");
            // The device works again: the session continues from its state; in exact mode with the same logits.
            storage.on.store(false, Ordering::Relaxed);
            ids[21..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
            let exact = matches!(precision, Precision::Exact(_));
            assert!(!exact || all == want, "{name}: wrong logits after a failure");
            assert!(all.iter().flatten().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn gate_15_a_file_that_is_cut_while_open_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    std::fs::copy(default_model(), &path).unwrap();
    let mut o = with_share(options(Precision::Exact(Level::B4)), 0.3);
    let whole = std::fs::metadata(&path).unwrap().len();
    for reads in [Reads::Threads, ring()] {
        o.streaming.reads = reads;
        let engine = Engine::open(&path, &o).unwrap();
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let ids = tokens();
        session.logits(&ids[..2]).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let text = session.logits(&ids[2..26]).unwrap_err().to_string();
        assert!(text.contains("cut.gguf") && text.contains("ends here"), "{text}");
        assert_eq!(session.tokens().len(), 2);
        file.set_len(whole).unwrap();
        std::fs::copy(default_model(), &path).unwrap();
    }
}

#[test]
fn gate_15_a_file_that_is_damaged_on_disk_is_found_at_the_first_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    let mut bytes = std::fs::read(default_model()).unwrap();
    let directory = dollop::internal::format::dollop::Directory::parse(&bytes).unwrap();
    let slabs = directory.gguf.tensors.iter().find(|t| t.name == "blk.3.ffn_exps.plane1").unwrap();
    (0..slabs.n_bytes).step_by(1000).for_each(|i| bytes[(slabs.offset + i) as usize] ^= 1);
    std::fs::write(&path, &bytes).unwrap();
    let o = with_share(options(Precision::Exact(Level::B4)), 0.4);
    assert_eq!(o.streaming.verify, Verify::First);
    let session =
        |o: &EngineOptions| Engine::open(&path, o).unwrap().session(SessionOptions::default()).unwrap();
    for reads in [Reads::Threads, ring()] {
        let mut o = o.clone();
        o.streaming.reads = reads;
        let text = session(&o).logits(&tokens()[..4]).unwrap_err().to_string();
        assert!(text.contains("damaged.gguf") && text.contains("checksum"), "{text}");
    }
    let mut never = o.clone();
    never.streaming.verify = Verify::Never;
    session(&never).logits(&tokens()[..4]).unwrap();

    // Dense weights are verified when they are loaded.
    let mut bytes = std::fs::read(default_model()).unwrap();
    let dense = directory.gguf.tensors.iter().find(|t| t.name == "blk.5.attn_v.planes").unwrap();
    bytes[(dense.offset + dense.n_bytes / 2) as usize] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    let text = Engine::open(&path, &o).err().unwrap().to_string();
    assert!(text.contains("damaged.gguf") && text.contains("blk.5.attn_v.planes"), "{text}");
    session(&never).logits(&tokens()[..4]).unwrap();
}
