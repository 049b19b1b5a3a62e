//! `-v`: the library's log messages, one line each on stderr.

use crate::note;
use log::{LevelFilter, Log, Metadata, Record};
use std::sync::OnceLock;
use std::time::Instant;

/// Shows messages from now on; `verbose` is the number of `-v` flags.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    // This program installs no other logger.
    let _ = log::set_logger(LOGGER.get_or_init(|| Logger { start: Instant::now() }));
    log::set_max_level(level);
}

struct Logger {
    start: Instant,
}

impl Log for Logger {
    /// All messages of Dollop, and only warnings and errors of other libraries.
    fn enabled(&self, of: &Metadata) -> bool {
        of.level() <= log::Level::Warn
            || of.target() == "dollop"
            || of.target().starts_with("dollop::")
            || of.target().starts_with("dollop_server")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let (seconds, level) = (self.start.elapsed().as_secs_f64(), record.level());
            note!("[{seconds:9.3} s {level:<5} {}] {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}
