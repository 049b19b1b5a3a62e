//! Gates 12–16: streaming. What is streamed is byte for byte what is resident (R2), decisions repeat (R3), a level is
//! upgraded by its missing planes alone (R4), and faults of storage are errors or retries, never wrong tokens. Every gate
//! asserts that what it is about has happened.

use dollop::quant::Level;
use dollop::sched::{Order, Precision, Verify};
use dollop::store::{Access, FileStorage, Reads, Storage};
use dollop::{
    Engine, EngineOptions, Error, MemoryPlan, Routing, SessionOptions, StreamStats, StreamingOptions, Trace,
};
use dollop_tests::default_model;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const CONTEXT: usize = 96;

/// A prompt and a continuation that visit many experts: ids spread over the vocabulary.
fn tokens() -> Vec<u32> {
    (0..28u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 49_000).collect()
}

fn options(precision: Precision) -> EngineOptions {
    EngineOptions {
        threads: 2,
        precision: Some(precision),
        context: Some(CONTEXT),
        chunk: Some(32),
        ..EngineOptions::default()
    }
}

/// A budget under which about `share` of the experts at the precision's floor fit.
fn with_share(mut o: EngineOptions, share: f64) -> EngineOptions {
    let base = o.clone();
    let plan =
        |memory| Engine::plan(&default_model(), &EngineOptions { memory: Some(memory), ..base.clone() });
    let least = match plan(1) {
        Err(Error::Budget { smallest, .. }) => smallest,
        other => panic!("a budget of one byte: {other:?}"),
    };
    let fixed: MemoryPlan = plan(least).unwrap();
    let bits = o.precision.unwrap().floor().bits();
    let experts = fixed.levels.iter().find(|l| l.bits == bits).unwrap().expert_bytes as f64;
    o.memory = Some(least + (share * experts) as u64);
    assert!(plan(o.memory.unwrap()).unwrap().streaming);
    o
}

fn open(o: &EngineOptions) -> Engine {
    Engine::open(&default_model(), o).unwrap()
}

/// Logits of a prompt taken in chunks, then token by token.
fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    let mut all = session.logits(&ids[..20]).unwrap();
    ids[20..].iter().for_each(|&id| all.extend(session.logits(&[id]).unwrap()));
    all
}

/// Reads by the system itself, where it has such.
fn ring() -> Reads {
    let probe = FileStorage::open_measured(&default_model(), &[(0, 4096)], 1, None, Reads::Ring);
    if probe.is_ok() {
        return Reads::Ring;
    }
    println!("no io_uring here: gates ran with threads alone");
    Reads::Threads
}

fn stats(engine: &Engine) -> StreamStats {
    engine.stream_stats().expect("this engine streams")
}

#[test]
fn gate_12_streamed_is_resident_byte_for_byte() {
    for level in [Level::B3, Level::B4] {
        let exact = options(Precision::Exact(level));
        let resident = open(&exact);
        assert!(resident.stream_stats().is_none() && !resident.memory_plan().streaming);
        let want = logits(&resident);
        let variants: [(&str, f64, fn(&mut EngineOptions)); 9] = [
            ("most of it", 0.8, |_| ()),
            ("half", 0.5, |_| ()),
            ("one expert a layer", 0.0, |_| ()),
            ("one lane", 0.3, |o| o.streaming.lanes = Some(1)),
            ("two threads", 0.3, |o| (o.streaming.lanes, o.streaming.reads) = (Some(2), Reads::Threads)),
            ("four lanes of the system's", 0.3, |o| {
                (o.streaming.lanes, o.streaming.reads) = (Some(4), ring())
            }),
            ("no overlap", 0.3, |o| o.streaming.overlap = false),
            ("lookahead", 0.5, |o| o.routing.lookahead = 2),
            ("one thread, short memory", 0.3, |o| (o.threads, o.streaming.half_life) = (1, 1.0)),
        ];
        for (name, share, change) in variants {
            let mut o = with_share(exact.clone(), share);
            change(&mut o);
            let engine = open(&o);
            assert!(logits(&engine) == want, "{name}: logits differ at level {level}");
            let (ring, reads) = (engine.streamer().unwrap().access() == Access::Ring, o.streaming.reads);
            assert!(reads == Reads::Measured || ring == (reads == Reads::Ring), "{name}");
            let s = stats(&engine);
            assert!(s.bytes_wanted > 0 && s.evictions > 0 && s.upgrades > 0, "{name}: {s:?}");
            assert!((s.mean_bits() - f64::from(level.bits())).abs() < 1e-6, "{name}: {s:?}");
            assert_eq!(s.bytes_ahead > 0, o.routing.lookahead > 0, "{name}: {s:?}");
            assert!(share < 0.2 || s.planes_hit[0] > 0, "{name}: nothing was ever found: {s:?}");
        }
    }
}

#[test]
fn a_prompt_serves_the_last_layer_only_where_logits_are_wanted() {
    let o = EngineOptions { chunk: Some(16), ..with_share(options(Precision::Exact(Level::B4)), 0.3) };
    let ids: Vec<u32> = tokens().into_iter().cycle().take(48).collect();
    let served = |all: bool| {
        let engine = open(&o);
        let mut session = engine.session(SessionOptions::default()).unwrap();
        if all {
            drop(session.logits(&ids).unwrap())
        } else {
            drop(session.best(&ids, 1).unwrap())
        }
        (stats(&engine).servings, engine.info().layers as u64)
    };
    let (all, layers) = served(true);
    assert_eq!(all, 3 * layers, "three chunks");
    assert_eq!(served(false).0, all - 2, "not of the first two");
}

#[test]
fn what_is_used_next_is_read_while_a_token_waits_for_its_experts() {
    let mut o = with_share(options(Precision::Exact(Level::B4)), 0.3);
    let trace = Arc::new(Trace::default());
    o.streaming.trace = Some(trace.clone());
    let engine = open(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    // The products of a prompt do not wait for memory.
    session.logits(&ids[..20]).unwrap();
    let read = || trace.to_json().contains("weights used next");
    assert!(!read());
    session.logits(&ids[20..21]).unwrap();
    // Where the system does not tell how much its caches hold, nothing is read.
    let told = |i: usize| Path::new(&format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).exists();
    assert_eq!(read(), (0..5).any(told));
    assert!(stats(&engine).wait_ns > 0);
}

#[test]
fn gate_13_adaptive_decisions_repeat_and_refinements_are_bought() {
    let adaptive = Precision::Adaptive { quality: 3.2, floor: Level::B2 };
    for (share, lookahead) in [(1.3, 0), (0.9, 8)] {
        let mut o = with_share(options(adaptive), share);
        o.routing.lookahead = lookahead;
        let first = open(&o);
        let want = logits(&first);
        let s = stats(&first);
        assert!(s.mean_bits() > 2.05 && s.mean_bits() < 4.0 && s.downgrades > 0 && s.upgrades > 0, "{s:?}");
        assert!(s.bytes_moved > 0, "slabs of several sizes never had to be slid together: {s:?}");
        for (lanes, overlap, reads) in [(1, true, Reads::Threads), (4, false, ring())] {
            (o.streaming.lanes, o.streaming.overlap, o.streaming.reads) = (Some(lanes), overlap, reads);
            let again = open(&o);
            assert!(logits(&again) == want, "{lanes} lanes changed an adaptive result");
            assert_eq!(stats(&again).decisions, s.decisions);
        }
    }
}

#[test]
fn gate_14_an_upgrade_reads_the_missing_planes_alone() {
    // Everything fits at 4 bits; the first run needs 2, the second 4.
    let model = default_model();
    let adaptive = |quality| Precision::Adaptive { quality, floor: Level::B2 };
    let mut o = options(adaptive(2.0));
    let whole = Engine::plan(&model, &EngineOptions { memory: None, ..o.clone() }).unwrap();
    // One byte less than everything: streaming, with room for all but nothing.
    o.memory = Some(whole.total_bytes() - 1);
    let engine = open(&o);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = tokens();
    session.logits(&ids[..1]).unwrap();
    let low = stats(&engine);
    assert!(low.planes_wanted[1] == 0 && low.upgrades == 0, "{low:?}");
    engine.streamer().unwrap().set_quality(8.0);
    session.rewind(0);
    session.logits(&ids[..1]).unwrap();
    let high = stats(&engine).since(&low);
    assert!(high.planes_hit[0] > 0 && high.upgrades > 0, "{high:?}");
    // The bases of the first layer's experts were there; what it read are planes 1 and 2.
    let plan = engine.memory_plan();
    let bytes = |bits: u8| plan.levels.iter().find(|l| l.bits == bits).unwrap().touched_bytes;
    let experts = engine.info().experts_used * engine.info().layers;
    let one = |bits| bytes(bits) / experts as u64;
    let bases = high.planes_wanted[0] - high.planes_hit[0];
    let read = bases * one(2)
        + (high.planes_wanted[1] - high.planes_hit[1]) * (one(3) - one(2))
        + (high.planes_wanted[2] - high.planes_hit[2]) * (one(4) - one(3));
    assert_eq!(high.bytes_wanted, read);
    assert!(bases < high.planes_wanted[0] / 2, "{high:?}");
}

/// What may happen to a read: it gets the number of places read before, if this one is new (a place that was read before
/// is read again after a fault, whichever lane does it), the bytes, and how many there are.
type Fault = fn(Option<u64>, &mut [u8], usize) -> io::Result<usize>;

fn every(n: Option<u64>, k: u64) -> bool {
    n.is_some_and(|n| n.is_multiple_of(k))
}

/// A file that misbehaves on demand.
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
    let streaming = StreamingOptions { storage: Some(storage.clone()), ..o.streaming.clone() };
    (open(&EngineOptions { streaming, ..o.clone() }), storage)
}

#[test]
fn gate_15_transient_faults_are_retried_and_change_nothing() {
    let mut o = with_share(options(Precision::Exact(Level::B4)), 0.4);
    o.streaming.verify = Verify::Always;
    let want = logits(&open(&o));
    let kinds: [(&str, Fault, bool); 4] = [
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
        (
            "a slow lane",
            |n, _, got| {
                if every(n, 50) {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Ok(got)
            },
            false,
        ),
    ];
    for (name, kind, retried) in kinds {
        let (engine, _) = faulty(&o, kind);
        assert!(logits(&engine) == want, "{name}");
        assert_eq!(stats(&engine).retries > 0, retried, "{name}: {:?}", stats(&engine));
    }
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
                    // Everything happened to be resident.
                    Ok(_) => session.rewind(21),
                }
            }
            assert!(failures > 0 && session.tokens().len() == 21, "{name}");
            // The device comes back: the session goes on where it was. In exact mode with the very same logits.
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
    let directory = dollop::format::dollop::Directory::parse(&bytes).unwrap();
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

    // What is always used is compared when it is loaded.
    let mut bytes = std::fs::read(default_model()).unwrap();
    let dense = directory.gguf.tensors.iter().find(|t| t.name == "blk.5.attn_v.planes").unwrap();
    bytes[(dense.offset + dense.n_bytes / 2) as usize] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    let text = Engine::open(&path, &o).err().unwrap().to_string();
    assert!(text.contains("damaged.gguf") && text.contains("blk.5.attn_v.planes"), "{text}");
    session(&never).logits(&tokens()[..4]).unwrap();
}

#[test]
fn gate_16_budgets_that_cannot_work_and_contradictions_are_refused() {
    let model = default_model();
    let exact = options(Precision::Exact(Level::B4));
    let refused = |o: &EngineOptions| match Engine::open(Path::new(&model), o) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("opened"),
    };
    let tiny = EngineOptions { memory: Some(5 << 20), ..exact.clone() };
    let Err(Error::Budget { smallest, .. }) = Engine::open(&model, &tiny) else { panic!("opened in 5 MB") };
    assert!(refused(&tiny).contains(&format!("{}M", smallest.div_ceil(1 << 20))));
    // The number it names works.
    let least = EngineOptions { memory: Some(smallest), ..exact.clone() };
    let engine = open(&least);
    assert!(engine.memory_plan().total_bytes() <= smallest);
    // One session is planned for; a second one is not, until the first is gone.
    let first = engine.session(SessionOptions::default()).unwrap();
    assert!(engine.session(SessionOptions::default()).is_err());
    drop(first);
    engine.session(SessionOptions::default()).unwrap();

    for routing in [
        Routing { top_k: Some(4), ..Routing::default() },
        Routing { skip_cold: 0.1, ..Routing::default() },
        Routing { cache_prior: 0.1, ..Routing::default() },
    ] {
        assert!(refused(&EngineOptions { routing, ..exact.clone() }).contains("exact"));
    }
    let b8 = options(Precision::Exact(Level::B8));
    assert!(refused(&b8).contains("up to 4 bits"));
}

#[test]
fn gate_16_lossy_routing_is_counted_and_saves_reads() {
    let adaptive = Precision::Adaptive { quality: 3.5, floor: Level::B3 };
    let base = with_share(options(adaptive), 0.4);
    let run = |routing: Routing| {
        let engine = open(&EngineOptions { routing, ..base.clone() });
        let all = logits(&engine);
        assert!(all.iter().flatten().all(|x| x.is_finite()));
        (stats(&engine).bytes_wanted, engine.routing_departures())
    };
    let (own, none) = run(Routing::default());
    assert_eq!(none, (0, 0));
    let (read, (dropped, _)) = run(Routing { skip_cold: 0.08, ..Routing::default() });
    assert!(dropped > 0 && read < own, "{dropped} dropped, {read} of {own} bytes");
    let (read, (_, redirected)) = run(Routing { cache_prior: 0.3, ..Routing::default() });
    assert!(redirected > 0 && read < own, "{redirected} redirected, {read} of {own} bytes");
    let (read, _) = run(Routing { top_k: Some(6), ..Routing::default() });
    assert!(read < own);
}

#[test]
fn gate_16_orders_and_byte_limits_are_kept() {
    let adaptive = Precision::Adaptive { quality: 2.0, floor: Level::B2 };
    let mut o = with_share(options(adaptive), 1.3);
    for order in [Order::Worth, Order::Arrival, Order::Gate] {
        o.streaming.order = order;
        let mut read = Vec::new();
        for limit in [0, 200_000] {
            o.streaming.refinement_bytes = Some(limit);
            let engine = open(&o);
            logits(&engine);
            let s = stats(&engine);
            read.push((s.planes_wanted[1], s.mean_bits()));
        }
        assert!(read[0].0 == 0 && read[1].0 > 0 && read[1].1 > read[0].1, "{order:?}: {read:?}");
    }
}

#[test]
fn a_warm_start_loads_what_was_hot() {
    let o = with_share(options(Precision::Exact(Level::B4)), 0.5);
    let engine = open(&o);
    let want = logits(&engine);
    let heat = engine.streamer().unwrap().heat();
    let cold = stats(&open(&o));
    assert_eq!(cold.bytes_ahead, 0);
    let warm = open(&o);
    warm.warm_start(&heat).unwrap();
    assert!(stats(&warm).bytes_ahead > 0);
    assert!(logits(&warm) == want);
    assert!(stats(&warm).bytes_wanted < stats(&engine).bytes_wanted);
    assert!(warm.warm_start(&heat[1..]).is_err(), "another model's heat");
}
