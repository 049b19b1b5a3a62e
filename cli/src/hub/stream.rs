//! Downloads a model while it is converted: fetches the bytes of the next steps, verifies them, and frees what
//! no later step reads.
//!
//! The files have their full length and holes for the bytes that are not there. Workers fetch pieces in the
//! order in which steps need them, at most [`AHEAD`] pieces beyond the current step. One thread passes a
//! checksum over each file in order; its state is stored with every piece, so it resumes. Bytes are freed when
//! their last step is done and the checksum has passed them.

use super::fetch::{CONNECTIONS, Round, Trouble};
use super::holes;
use super::sum::{Sum, hex};
use crate::Failure;
use dollop::Error;
use dollop::convert::{Step, Supply};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pieces fetched beyond those of the current step: 256 MiB. They bridge the time in which a step is encoded.
const AHEAD: usize = 16;
/// Time between two looks for cancellation.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a checksum's state.
const STATE: u64 = 32;
/// Suffix of the file with the states of a checksum, one after each piece.
const SUMS: &str = ".dollop-sums";
/// The file with the number of steps whose bytes may be freed.
const FREED: &str = "freed";

/// The supply of a remote model's weights.
pub struct Stream<'a> {
    parts: Vec<Part<'a>>,
    /// The folder of the files.
    folder: &'a Path,
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
}

/// One file.
struct Part<'a> {
    round: Round<'a>,
    /// For reading, and for holes.
    file: File,
    sums: File,
}

#[derive(Default)]
struct State {
    steps: Vec<Step>,
    /// Steps that earlier runs have finished.
    before: usize,
    /// Missing pieces as (step, file, piece), in the order of their downloads.
    order: Vec<(usize, usize, usize)>,
    next: usize,
    /// The current step.
    step: usize,
    /// Number of finished steps.
    done: usize,
    spans: Vec<Vec<Span>>,
    begun: bool,
    /// Whether all checksums have passed.
    verified: bool,
    trouble: Option<Trouble>,
}

/// Bytes of a file that are freed together.
struct Span {
    bytes: Range<u64>,
    /// The last step that reads them, if any.
    last: Option<usize>,
    freed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Stream<'a> {
    /// A stream of these files, which lie in `folder`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new(rounds: Vec<Round<'a>>, folder: &'a Path) -> io::Result<Stream<'a>> {
        let part = |round: Round<'a>| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let (file, sums) = (options.open(&round.job.to)?, options.open(round.job.beside(SUMS))?);
            Ok(Part { round, file, sums })
        };
        let parts = rounds.into_iter().map(part).collect::<io::Result<_>>()?;
        let (state, changed, stopped) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Ok(Stream { parts, folder, state, changed, stopped })
    }

    /// Runs `work` while the stream's threads fetch and verify.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Stops the threads, also if `work` panics.
        struct Stop<'a, 'b>(&'a Stream<'b>);
        impl Drop for Stop<'_, '_> {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        std::thread::scope(|scope| {
            let _stop = Stop(self);
            (0..CONNECTIONS).for_each(|_| drop(scope.spawn(|| self.fetch())));
            scope.spawn(|| self.verify());
            work()
        })
    }

    /// Why the stream ended early, if it did.
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.state).trouble.take()
    }

    /// The tensors of the current step.
    pub fn current(&self) -> String {
        let state = lock(&self.state);
        state.steps.get(state.step).map_or_else(String::new, |step| step.name.clone())
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.parts.iter().for_each(|part| part.round.stop.store(true, Ordering::Relaxed));
        self.changed.notify_all();
    }

    fn fail(&self, trouble: Trouble) {
        lock(&self.state).trouble.get_or_insert(trouble);
        self.stop();
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Fetches pieces until none is missing.
    fn fetch(&self) {
        while let Some((file, piece)) = self.take() {
            let part = &self.parts[file];
            let range = lock(&part.round.pieces).range(piece);
            match part.round.piece(piece, &range) {
                Ok(()) => self.changed.notify_all(),
                // The conversion ended first.
                Err(_) if self.stopped.load(Ordering::Relaxed) => return,
                Err(trouble) => self.fail(trouble),
            }
        }
    }

    /// The next piece to fetch, as soon as it may be fetched.
    fn take(&self) -> Option<(usize, usize)> {
        let mut state = lock(&self.state);
        while !self.stopped.load(Ordering::Relaxed) {
            let due = state.order.partition_point(|(step, ..)| *step <= state.step);
            match state.order.get(state.next) {
                Some(&(_, file, piece)) if state.next < due + AHEAD && !self.is_behind() => {
                    state.next += 1;
                    return Some((file, piece));
                }
                None if state.begun => return None,
                _ => state = self.wait(state),
            }
        }
        None
    }

    /// Whether the checksum has more to do than it should, so that the disk would fill with bytes that wait for
    /// it. A checksum that waits for a piece itself is not behind.
    fn is_behind(&self) -> bool {
        let (mut waiting, mut ready) = (0, false);
        for part in self.parts.iter().filter(|part| part.round.job.sha256.is_some()) {
            let pieces = lock(&part.round.pieces);
            waiting += pieces.whole[pieces.checked..].iter().filter(|there| **there).count();
            ready |= pieces.whole.get(pieces.checked) == Some(&true);
        }
        ready && waiting >= 2 * AHEAD
    }

    /// Verifies the files in order, as far as they are there.
    fn verify(&self) {
        let outcome = || -> Result<(), Trouble> {
            let mut buffer = Vec::new();
            while !self.stopped.load(Ordering::Relaxed) {
                let mut state = lock(&self.state);
                if !state.begun {
                    drop(self.wait(state));
                    continue;
                }
                drop(state);
                let mut passed = false;
                for part in &self.parts {
                    passed |= part.verify_next(&mut buffer)?;
                }
                state = lock(&self.state);
                state.verified = self.parts.iter().all(Part::is_verified);
                if passed {
                    self.free(&mut state).map_err(|e| self.failed(&e))?;
                    self.changed.notify_all();
                } else if state.verified {
                    return Ok(());
                } else {
                    drop(self.wait(state));
                }
            }
            Ok(())
        };
        if let Err(trouble) = outcome() {
            self.fail(trouble);
        }
    }

    fn failed(&self, e: &io::Error) -> Trouble {
        Trouble::Failed(match self.parts.first() {
            Some(part) => part.round.job.failed(e),
            None => Failure(e.to_string()),
        })
    }

    /// Frees the bytes that are verified and that no later step reads.
    fn free(&self, state: &mut State) -> io::Result<()> {
        let mut runs: Vec<(usize, Range<u64>)> = Vec::new();
        for (file, part) in self.parts.iter().enumerate() {
            let (verified, done) = (part.verified_bytes(), state.done);
            for span in &mut state.spans[file] {
                if span.freed || span.bytes.end > verified || span.last.is_some_and(|last| last >= done) {
                    continue;
                }
                span.freed = true;
                match runs.last_mut().filter(|(f, run)| *f == file && run.end == span.bytes.start) {
                    Some((_, run)) => run.end = span.bytes.end,
                    None => runs.push((file, span.bytes.clone())),
                }
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        // After a crash, none of these may be older than the holes.
        remember(&self.folder.join(FREED), state.before + state.done)?;
        for part in &self.parts {
            part.sums.sync_data()?;
            lock(&part.round.pieces).sync()?;
        }
        runs.into_iter().try_for_each(|(file, run)| holes::punch(&self.parts[file].file, run))
    }

    /// Orders the missing pieces, and cuts the files into spans.
    fn plan(&self, state: &mut State) {
        state.spans = vec_of(self.parts.len());
        for (file, part) in self.parts.iter().enumerate() {
            let pieces = lock(&part.round.pieces);
            let of = |e: &&dollop::convert::Extent| e.file == file;
            let mut needed: Vec<Option<usize>> = vec![None; pieces.whole.len()];
            let size = pieces.range(0).end.max(1);
            let mut last = Vec::new();
            for (i, step) in state.steps.iter().enumerate() {
                for extent in step.first.iter().filter(of).filter(|e| !e.bytes.is_empty()) {
                    let from = (extent.bytes.start / size) as usize;
                    let to = ((extent.bytes.end - 1) / size) as usize;
                    needed[from..=to].iter_mut().for_each(|n| *n = n.or(Some(i)));
                }
                last.extend(step.last.iter().filter(of).map(|e| (e.bytes.clone(), i)));
            }
            let mut before = 0;
            for (piece, needed) in needed.into_iter().enumerate() {
                // The checksum also needs what no step reads.
                let needed = needed.or(part.round.job.sha256.map(|_| before));
                before = needed.unwrap_or(before);
                if let Some(step) = needed.filter(|_| !pieces.whole[piece]) {
                    state.order.push((step, file, piece));
                }
            }
            last.sort_by_key(|(bytes, _)| bytes.start);
            state.spans[file] = spans(part.round.job.len, header(part), size, last);
        }
        state.order.sort_unstable();
    }
}

fn vec_of<T>(n: usize) -> Vec<Vec<T>> {
    (0..n).map(|_| Vec::new()).collect()
}

/// The end of a file's header, which is never freed.
fn header(part: &Part) -> u64 {
    super::peek::header_bytes(&part.round.job.to).unwrap_or(u64::MAX)
}

/// All bytes of a file after its header as spans: those that steps read last, and the rest cut into pieces.
fn spans(len: u64, header: u64, piece: u64, last: Vec<(Range<u64>, usize)>) -> Vec<Span> {
    let mut all = Vec::new();
    let mut at = header.min(len);
    let rest = |at: u64, end: u64, all: &mut Vec<Span>| {
        let mut from = at;
        while from < end {
            let to = (from / piece + 1).saturating_mul(piece).min(end);
            all.push(Span { bytes: from..to, last: None, freed: false });
            from = to;
        }
    };
    for (bytes, step) in last {
        rest(at, bytes.start, &mut all);
        at = at.max(bytes.end);
        all.push(Span { bytes, last: Some(step), freed: false });
    }
    rest(at, len, &mut all);
    all
}

/// Writes a number into a file, which is replaced as a whole.
fn remember(path: &Path, number: usize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(number.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

impl Part<'_> {
    /// Passes the checksum over the next piece if it is there. Returns whether it was.
    fn verify_next(&self, buffer: &mut Vec<u8>) -> Result<bool, Trouble> {
        let Some(want) = self.round.job.sha256 else { return Ok(false) };
        let (i, range, count) = {
            let pieces = lock(&self.round.pieces);
            let i = pieces.checked;
            if pieces.whole.get(i) != Some(&true) {
                return Ok(false);
            }
            (i, pieces.range(i), pieces.whole.len())
        };
        let found = self.pass(i, range, i + 1 == count, buffer);
        let found = found.map_err(|e| Trouble::Failed(self.round.job.failed(&e)))?;
        if i + 1 == count && found != want {
            return Err(Trouble::Changed(format!(
                "the bytes have the checksum {found}, and the hub says {want}"
            )));
        }
        let mut pieces = lock(&self.round.pieces);
        pieces.check_next().map_err(|e| Trouble::Failed(self.round.job.failed(&e)))?;
        Ok(true)
    }

    /// Adds a piece to the checksum, and stores its state. Returns the state in hexadecimal.
    fn pass(&self, i: usize, range: Range<u64>, is_last: bool, buffer: &mut Vec<u8>) -> io::Result<String> {
        let mut sum = Sum::new();
        let (mut file, mut sums) = (&self.file, &self.sums);
        if i > 0 {
            let mut state = [0; STATE as usize];
            sums.seek(SeekFrom::Start((i as u64 - 1) * STATE))?;
            sums.read_exact(&mut state)?;
            sum = Sum::from_bytes(&state);
        }
        buffer.resize((range.end - range.start) as usize, 0);
        file.seek(SeekFrom::Start(range.start))?;
        file.read_exact(buffer)?;
        let rest = sum.add(buffer);
        if is_last {
            sum.end(rest, range.end);
        }
        sums.seek(SeekFrom::Start(i as u64 * STATE))?;
        sums.write_all(&sum.bytes())?;
        Ok(hex(&sum.bytes()))
    }

    fn is_verified(&self) -> bool {
        let pieces = lock(&self.round.pieces);
        self.round.job.sha256.is_none() || pieces.checked == pieces.whole.len()
    }

    /// How far the file is verified; without a checksum, to its end.
    fn verified_bytes(&self) -> u64 {
        let pieces = lock(&self.round.pieces);
        match pieces.checked {
            _ if self.round.job.sha256.is_none() => u64::MAX,
            0 => 0,
            n => pieces.range(n - 1).end,
        }
    }
}

/// The library shows no more than the text; the caller asks [`Stream::trouble`].
fn ended() -> Error {
    Error::Invalid("the download ended early".into())
}

impl Supply for Stream<'_> {
    fn begin(&self, files: &[&Path], steps: Vec<Step>, before: usize) -> dollop::Result<()> {
        let ours: Vec<&PathBuf> = self.parts.iter().map(|part| &part.round.job.to).collect();
        if ours != files {
            return Err(Error::Invalid("the model's files are not those that the hub lists".into()));
        }
        let mut state = lock(&self.state);
        let begin = || -> io::Result<()> {
            let freed = match fs::read_to_string(self.folder.join(FREED)) {
                Ok(text) => text.trim().parse().unwrap_or(usize::MAX),
                Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
                Err(e) => return Err(e),
            };
            // The journal lost steps whose bytes are gone: all is fetched again.
            if freed > before {
                self.parts.iter().try_for_each(|part| lock(&part.round.pieces).reset())?;
                remember(&self.folder.join(FREED), before)?;
            }
            Ok(())
        };
        begin().map_err(|e| Error::io(self.folder, e))?;
        (state.steps, state.before) = (steps, before);
        self.plan(&mut state);
        state.begun = true;
        state.verified = self.parts.iter().all(Part::is_verified);
        self.changed.notify_all();
        Ok(())
    }

    fn ready(&self, step: usize, wait: &mut dyn FnMut() -> dollop::Result<()>) -> dollop::Result<()> {
        lock(&self.state).step = step;
        self.changed.notify_all();
        loop {
            let state = lock(&self.state);
            if state.trouble.is_some() {
                return Err(ended());
            }
            let due = state.order.partition_point(|(needed, ..)| *needed <= step);
            let there =
                |&(_, file, piece): &(usize, usize, usize)| lock(&self.parts[file].round.pieces).whole[piece];
            if state.order[..due].iter().all(there) {
                return Ok(());
            }
            drop(self.wait(state));
            wait()?;
        }
    }

    fn done(&self, step: usize) -> dollop::Result<()> {
        let mut state = lock(&self.state);
        state.done = step + 1;
        self.free(&mut state).map_err(|e| Error::io(self.folder, e))
    }

    fn finish(&self, wait: &mut dyn FnMut() -> dollop::Result<()>) -> dollop::Result<()> {
        lock(&self.state).step = usize::MAX;
        self.changed.notify_all();
        loop {
            let state = lock(&self.state);
            if state.trouble.is_some() {
                return Err(ended());
            }
            if state.verified {
                return Ok(());
            }
            drop(self.wait(state));
            wait()?;
        }
    }
}
