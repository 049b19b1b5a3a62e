//! Gate 91: messages to the facade `log`: opened files and decisions, each plane that is read or evicted,
//! corrected faults. The engine's counters agree, and a disabled level logs nothing.

use dollop::Level;
use dollop::Precision;
use dollop::internal::store::{Access, FileStorage, Storage};
use dollop::{Engine, EngineOptions, GenerateOptions, SessionOptions, TrimLevel};
use dollop_tests::tiny::Tiny;
use dollop_tests::{set, short_model, with_budget};
use log::{Level as LogLevel, LevelFilter, Log, Metadata, Record};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

static HEARD: Mutex<Vec<(LogLevel, String, String)>> = Mutex::new(Vec::new());

struct Hears;

impl Log for Hears {
    fn enabled(&self, of: &Metadata) -> bool {
        of.target().starts_with("dollop")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let said = (record.level(), record.target().to_owned(), record.args().to_string());
            HEARD.lock().unwrap().push(said);
        }
    }

    fn flush(&self) {}
}

/// Messages since the last call.
fn heard() -> Vec<(LogLevel, String, String)> {
    std::mem::take(&mut HEARD.lock().unwrap())
}

fn count(of: &[(LogLevel, String, String)], level: LogLevel, words: &str) -> u64 {
    of.iter().filter(|(l, _, text)| *l == level && text.contains(words)).count() as u64
}

/// A file whose first read fails.
struct Hiccups {
    file: FileStorage,
    failed: AtomicBool,
}

impl Storage for Hiccups {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> std::io::Result<usize> {
        match self.failed.swap(true, Ordering::Relaxed) {
            true => self.file.read_at(offset, to),
            false => Err(std::io::Error::other("a hiccup")),
        }
    }

    fn access(&self) -> Access {
        self.file.access()
    }
}

#[test]
fn gate_91_the_log_says_what_was_done() {
    log::set_logger(&Hears).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let path = short_model();
    let options = set!(EngineOptions {
        threads: 2,
        precision: Some(Precision::Exact(Level::B4)),
        context: Some(64),
        chunk: Some(16),
        ..EngineOptions::default()
    });
    let options = with_budget(&path, options, 1 << 20);
    heard();

    let engine = Engine::open(&path, &options).unwrap();
    let opened = heard();
    let (name, plan) = (path.to_str().unwrap(), engine.memory_plan());
    assert_eq!(count(&opened, LogLevel::Info, name), 1, "{opened:?}");
    assert_eq!(count(&opened, LogLevel::Info, &engine.info().mode), 1, "{opened:?}");
    assert_eq!(count(&opened, LogLevel::Debug, &format!("memory: {plan}")), 1, "{opened:?}");
    assert_eq!(count(&opened, LogLevel::Debug, "2 threads"), 1, "{opened:?}");
    assert_eq!(count(&opened, LogLevel::Debug, "lanes of reads"), 1, "{opened:?}");

    let mut session = engine.session(SessionOptions::default()).unwrap();
    let generate = set!(GenerateOptions { max_tokens: 8, ignore_eos: true, ..GenerateOptions::default() });
    session.generate(&[1, 97, 194, 300], &generate, &mut |_| ()).unwrap();
    let (said, stats) = (heard(), engine.stream_stats().unwrap());
    assert!(stats.evictions > 0);
    assert_eq!(count(&said, LogLevel::Trace, "gives way"), stats.evictions + stats.downgrades);
    let read = stats.planes_wanted.iter().sum::<u64>() - stats.planes_hit.iter().sum::<u64>();
    assert_eq!(count(&said, LogLevel::Trace, "is read"), read);
    assert_eq!(count(&said, LogLevel::Debug, "a prompt of 4 tokens, 0 of them"), 1, "{said:?}");
    assert_eq!(count(&said, LogLevel::Warn, ""), 0, "{said:?}");

    engine.trim(TrimLevel::Complete).unwrap();
    let said = heard();
    assert_eq!(count(&said, LogLevel::Debug, "trimmed to Complete"), 1, "{said:?}");
    assert_eq!(count(&said, LogLevel::Debug, "the cache has"), 1, "{said:?}");

    // A read that fails once is retried, and logged.
    let file = FileStorage::open(&path, false).unwrap();
    let mut options = options;
    options.streaming.storage = Some(Arc::new(Hiccups { file, failed: AtomicBool::new(false) }));
    let engine = Engine::open(&path, &options).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.last_logits(&[1, 2, 3]).unwrap();
    assert_eq!(engine.stream_stats().unwrap().retries, 1);
    let said = heard();
    assert_eq!(count(&said, LogLevel::Warn, "a hiccup"), 1, "{said:?}");

    // Messages of a conversion; with a lower level, fewer messages.
    log::set_max_level(LevelFilter::Info);
    let folder = tempfile::tempdir().unwrap();
    Tiny::load("olmoe").write_folder(folder.path());
    let options = EngineOptions::default().with_cache(folder.path().join("cache"));
    let engine = Engine::open(folder.path(), &options).unwrap();
    engine.session(SessionOptions::default()).unwrap().last_logits(&[1]).unwrap();
    let said = heard();
    assert_eq!(count(&said, LogLevel::Info, "converted into"), 1, "{said:?}");
    assert!(said.iter().all(|(level, ..)| *level <= LogLevel::Info), "{said:?}");
    log::set_max_level(LevelFilter::Off);
    Engine::open(folder.path(), &options).unwrap();
    assert_eq!(heard(), []);
}
