//! Progress bars, number formats, and reading and writing files.

use crate::Failure;
use crate::note;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A progress bar with rate and time left, restarted for each stage. Without a terminal, it prints plain
/// lines. It appears only if the work takes longer than 300 ms.
pub struct Bar {
    unit: Unit,
    stage: &'static str,
    bar: Option<ProgressBar>,
    start: Instant,
    /// Progress before the stage began, which does not count for the rate.
    before: u64,
    last: Instant,
}

/// What a bar counts.
#[derive(Clone, Copy)]
pub enum Unit {
    Bytes,
    Tokens,
}

impl Unit {
    fn template(self) -> &'static str {
        match self {
            Unit::Bytes => "{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
            Unit::Tokens => "{msg} [{bar:30}] {pos}/{len} tokens, {rate}, {eta} left",
        }
    }

    fn show(self, n: u64) -> String {
        match self {
            Unit::Bytes => bytes(n),
            Unit::Tokens => format!("{n} tok"),
        }
    }
}

impl Bar {
    pub fn new(unit: Unit) -> Bar {
        let now = Instant::now();
        Bar { unit, stage: "", bar: None, start: now, before: 0, last: now }
    }

    /// Shows the current stage, and how much of the total is done.
    pub fn show(&mut self, stage: &'static str, done: u64, total: u64) {
        self.show_item(stage, "", done, total);
    }

    /// Like [`Bar::show`], with what the stage works on.
    pub fn show_item(&mut self, stage: &'static str, item: &str, done: u64, total: u64) {
        if stage != self.stage {
            // Each stage has its own rate.
            (self.stage, self.start, self.before) = (stage, Instant::now(), done);
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
        }
        if self.start.elapsed() < Duration::from_millis(300) {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar =
                    ProgressBar::new(total).with_elapsed(self.start.elapsed()).with_position(self.before);
                bar.set_style(
                    ProgressStyle::with_template(self.unit.template())
                        .expect("the template is a constant")
                        .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
                            // A missing rate is not a failure.
                            let _ = write!(to, "{:.0} tok/s", state.per_sec());
                        })
                        .progress_chars("=> "),
                );
                bar
            });
            bar.set_message(shown(stage, item));
            bar.set_position(done);
        } else if self.last.elapsed() > Duration::from_secs(10) {
            self.last = Instant::now();
            let rate = done.saturating_sub(self.before) as f64 / self.start.elapsed().as_secs_f64();
            let left = total.saturating_sub(done) as f64 / rate.max(1.0);
            note!(
                "{}: {} of {}, {}/s, {left:.0} s left",
                shown(stage, item),
                self.unit.show(done),
                self.unit.show(total),
                self.unit.show(rate as u64),
            );
        }
    }
}

fn shown(stage: &str, item: &str) -> String {
    if item.is_empty() { stage.to_owned() } else { format!("{stage} {}", crate::screen::one_line(item)) }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1.5 GB`, in powers of 1000.
pub fn bytes(n: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(size, _)| n as f64 >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", n as f64 / size),
        None => format!("{n} B"),
    }
}

/// `6.9 B`: a number of weights.
pub fn count(n: u64) -> String {
    if n >= 1_000_000_000 { format!("{:.2} B", n as f64 / 1e9) } else { format!("{:.1} M", n as f64 / 1e6) }
}

/// The peak resident memory of this process in bytes, if the system reports it.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Writes a result to a file atomically, by renaming a temporary file. It never replaces a model, nor an
/// input of the command.
pub fn write_file(path: &Path, text: &str, inputs: &[&Path]) -> Result<(), Failure> {
    not_an_input(path, inputs)?;
    let mut start = [0; 4];
    let is_model =
        std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok() && &start == b"GGUF";
    if is_model {
        return Err(format!("{}: this file is a model; name another file to write", path.display()).into());
    }
    let failed = |e: std::io::Error| Failure(format!("{}: {e}", path.display()));
    // Several processes may write the same file at once, so each uses its own temporary file.
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(name);
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&partial))).map_err(failed)
}

/// Fails if the output file is one of the command's inputs, or lies in an input folder.
pub fn not_an_input(out: &Path, inputs: &[&Path]) -> Result<(), Failure> {
    let Ok(place) = out.canonicalize() else { return Ok(()) };
    if inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| place.starts_with(input))) {
        return Err(format!("{}: this file is read; name another file to write", out.display()).into());
    }
    Ok(())
}

/// Reads UTF-8 text from a file, or from standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let bytes = if path.as_os_str() == "-" {
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut all)
            .map_err(|e| format!("standard input: {e}"))?;
        all
    } else {
        std::fs::read(path).map_err(|e| format!("{name}: {e}"))?
    };
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("{name}: byte {at} is not UTF-8; convert the text first (for example with iconv)").into()
    })
}
