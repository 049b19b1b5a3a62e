//! Downloads one file, in pieces over several connections. A download can resume after a kill at any moment.
//!
//! `FILE.dollop-partial` holds the bytes at their final offsets, and `FILE.dollop-pieces` records which
//! pieces are complete. The file gets its final name after its checksum was verified. A lock keeps other
//! processes out, including Hugging Face's own programs.

use super::http::{Client, Fault, host};
use crate::{Failure, note};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// More connections were no faster on a fast line, and fewer were slower on a line with high latency.
pub const CONNECTIONS: usize = 6;
const BUFFER: usize = 256 << 10;
/// Interval of progress updates.
const LOOK: Duration = Duration::from_millis(50);

/// A file to download.
pub struct Job<'a> {
    /// Its name in messages.
    pub shown: &'a str,
    pub url: String,
    pub len: u64,
    /// In hexadecimal.
    pub sha256: Option<&'a str>,
    /// Identifies this version of the file: a checksum, or the server's ETag.
    pub state: &'a str,
    /// Whether the ETag of each response must equal `state`.
    pub check_etag: bool,
    pub to: PathBuf,
    pub lock: PathBuf,
    /// Whether pieces are written to `to` itself, which is converted meanwhile.
    pub in_place: bool,
}

/// Receives the current stage, and how many bytes are done.
pub type Show<'a> = &'a mut dyn FnMut(&'static str, u64);

pub enum Trouble {
    /// The file on the server changed during the download.
    Changed(String),
    NoRanges,
    Failed(Failure),
}

impl Job<'_> {
    pub fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.to.as_os_str().to_os_string();
        name.push(end);
        name.into()
    }

    fn partial(&self) -> PathBuf {
        if self.in_place { self.to.clone() } else { self.beside(PARTIAL) }
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.to).is_ok_and(|m| m.len() == self.len)
    }

    /// Bytes still to download, judged by the files on disk.
    pub fn missing(&self, piece: u64) -> u64 {
        if self.is_there() { 0 } else { Pieces::seen(self, piece).map_or(self.len, |p| self.len - p.bytes()) }
    }

    pub fn failed(&self, e: &io::Error) -> Failure {
        let folder = self.to.parent().unwrap_or(Path::new(".")).display();
        if self.in_place {
            return Failure(format!(
                "{folder}: {e}; free some space, or name another folder, and run the same command again: it goes on where it was"
            ));
        }
        let what = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!(
                "{folder}: {e}; free some space, or set HF_HOME to a folder on another disk, and run the same command again: it goes on where it was"
            ),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                format!("{folder}: {e}; set HF_HOME to a folder that can be written")
            }
            _ => format!("{}: {e}", self.to.display()),
        };
        Failure(what)
    }

    fn clear(&self) {
        let _ = fs::remove_file(self.beside(PIECES));
        if !self.in_place {
            let _ = fs::remove_file(self.partial());
        }
    }
}

/// Suffixes of unfinished files.
pub const PARTIAL: &str = ".dollop-partial";
pub const PIECES: &str = ".dollop-pieces";

/// Downloads a file, or what is missing of it. Returns `false` if the file on the server no longer has the
/// job's ETag: the caller must then make a new job.
///
/// # Errors
/// What the user can do about it. The final file does not exist then; downloaded pieces stay for the next
/// try.
pub fn fetch(client: &Client, job: &Job, show: Show) -> Result<bool, Failure> {
    if job.is_there() {
        return Ok(true);
    }
    let folder = job.to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| job.failed(&e))?;
    let failed = |e: io::Error| job.failed(&e);
    let waiting = format!("{}: another process fetches it; waiting for that", job.shown);
    let _lock = lock(client, &job.lock, &waiting, &mut || show("waiting", 0)).map_err(|e| match e {
        Some(e) => failed(e),
        None => "stopped".into(),
    })?;
    let mut piece = client.settings.piece_bytes;
    let mut changes = 0;
    while !job.is_there() {
        match once(client, job, piece, show) {
            Ok(()) => {}
            Err(Trouble::Failed(Failure(why))) => return Err(format!("{}: {why}", job.shown).into()),
            Err(Trouble::NoRanges) if piece < job.len => piece = job.len,
            Err(Trouble::NoRanges) => {
                return Err(format!("{}: the server sends other bytes than were asked for", job.shown).into());
            }
            Err(Trouble::Changed(why)) => {
                job.clear();
                changes += 1;
                if changes > 1 {
                    return Err(format!("{}: {why}, twice in a row; try again later", job.shown).into());
                }
                note!("{}: {why}; it is fetched anew", job.shown);
                if job.check_etag {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Waits until no other process holds this lock. `None` if the file system has no locks.
///
/// # Errors
/// Those of the file system; `None` if cancelled.
pub fn lock(
    client: &Client,
    path: &Path,
    waiting: &str,
    show: &mut dyn FnMut(),
) -> Result<Option<File>, Option<io::Error>> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(Some)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(Some)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) if client.cancel.is_cancelled() => return Err(None),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    note!("{waiting}");
                }
                show();
                std::thread::sleep(LOOK);
            }
        }
    }
}

fn once(client: &Client, job: &Job, piece: u64, show: Show) -> Result<(), Trouble> {
    let failed = |e: io::Error| Trouble::Failed(job.failed(&e));
    let pieces = Pieces::open(job, piece).map_err(failed)?;
    let ends_whole = {
        let round = Round::new(client, job, pieces, piece >= job.len);
        round.run(show);
        round.trouble.into_inner().unwrap_or_else(PoisonError::into_inner)
    };
    if let Some(trouble) = ends_whole {
        return Err(trouble);
    }
    let partial = job.partial();
    let file = OpenOptions::new().read(true).write(true).open(&partial).map_err(failed)?;
    if let Some(sha256) = job.sha256 {
        let found = checksum(client, &file, show)
            .map_err(failed)?
            .ok_or_else(|| Trouble::Failed("stopped".into()))?;
        if found != sha256 {
            return Err(Trouble::Changed(format!(
                "the bytes have the checksum {found}, and the hub says {sha256}"
            )));
        }
    }
    file.sync_all().map_err(failed)?;
    drop(file);
    fs::rename(&partial, &job.to).map_err(failed)?;
    let _ = fs::remove_file(job.beside(PIECES));
    Ok(())
}

/// The SHA-256 of the file; `None` if cancelled.
fn checksum(client: &Client, mut file: &File, show: Show) -> io::Result<Option<String>> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
        done += n as u64;
        show("checking", done);
        if client.cancel.is_cancelled() {
            return Ok(None);
        }
    }
    Ok(Some(context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect()))
}

/// Which pieces are complete.
pub struct Pieces {
    piece: u64,
    len: u64,
    pub whole: Vec<bool>,
    /// How many pieces, from the first on, the running checksum of a stream has passed.
    pub checked: usize,
    file: Option<File>,
    header: String,
}

/// Marks of pieces that are missing, complete, and passed by the running checksum.
const MISSING: u8 = b'0';
const WHOLE: u8 = b'1';
const CHECKED: u8 = b'2';

impl Pieces {
    fn empty(job: &Job, piece: u64) -> Pieces {
        let header = format!("{} {piece} {}\n", job.len, job.state.escape_default());
        Pieces {
            piece,
            len: job.len,
            whole: vec![false; job.len.div_ceil(piece) as usize],
            checked: 0,
            file: None,
            header,
        }
    }

    /// The pieces of an earlier try, if it was for the same version of the file.
    pub fn seen(job: &Job, piece: u64) -> Option<Pieces> {
        let mut pieces = Pieces::empty(job, piece);
        let text = fs::read(job.beside(PIECES)).ok()?;
        let marks = text.strip_prefix(pieces.header.as_bytes()).filter(|m| m.len() == pieces.whole.len())?;
        let there = fs::metadata(job.partial()).is_ok_and(|m| m.len() == job.len);
        pieces.whole = marks.iter().map(|m| *m != MISSING).collect();
        pieces.checked = marks.iter().take_while(|m| **m == CHECKED).count();
        there.then_some(pieces)
    }

    pub fn open(job: &Job, piece: u64) -> io::Result<Pieces> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let path = job.beside(PIECES);
        if let Some(mut pieces) = Pieces::seen(job, piece) {
            pieces.file = Some(options.open(path)?);
            return Ok(pieces);
        }
        job.clear();
        let mut pieces = Pieces::empty(job, piece);
        options.open(job.partial())?.set_len(job.len)?;
        let mut file = options.open(path)?;
        file.write_all(pieces.header.as_bytes())?;
        file.write_all(&vec![MISSING; pieces.whole.len()])?;
        pieces.file = Some(file);
        Ok(pieces)
    }

    pub fn range(&self, i: usize) -> Range<u64> {
        let start = i as u64 * self.piece;
        start..(start + self.piece).min(self.len)
    }

    fn bytes(&self) -> u64 {
        let len = |i| {
            let r: Range<u64> = self.range(i);
            r.end - r.start
        };
        (0..self.whole.len()).filter(|&i| self.whole[i]).map(len).sum()
    }

    fn mark(&mut self, i: usize, mark: u8) -> io::Result<()> {
        self.whole[i] = true;
        let at = self.header.len() as u64 + i as u64;
        let file = self.file.as_mut().expect("pieces that are marked are open");
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&[mark])
    }

    /// The running checksum has passed the next piece.
    pub fn check_next(&mut self) -> io::Result<()> {
        self.mark(self.checked, CHECKED)?;
        self.checked += 1;
        Ok(())
    }

    /// Marks all pieces as missing.
    pub fn reset(&mut self) -> io::Result<()> {
        (0..self.whole.len()).try_for_each(|i| self.mark(i, MISSING))?;
        self.whole.fill(false);
        self.checked = 0;
        self.sync()
    }

    /// Waits until the marks are on disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// One attempt at all missing pieces.
pub struct Round<'a> {
    client: &'a Client,
    pub job: &'a Job<'a>,
    missing: Vec<(usize, Range<u64>)>,
    pub pieces: Mutex<Pieces>,
    /// Whether the whole file is one piece, which restarts from the beginning on failure. This is for servers
    /// without ranges.
    in_one: bool,
    next: AtomicUsize,
    done: AtomicU64,
    pub stop: AtomicBool,
    trouble: Mutex<Option<Trouble>>,
    /// The URL that the last redirect led to. It is valid for a while.
    direct: Mutex<Option<String>>,
}

impl<'a> Round<'a> {
    pub fn new(client: &'a Client, job: &'a Job<'a>, pieces: Pieces, in_one: bool) -> Round<'a> {
        let missing =
            (0..pieces.whole.len()).filter(|&i| !pieces.whole[i]).map(|i| (i, pieces.range(i))).collect();
        Round {
            client,
            job,
            missing,
            done: AtomicU64::new(pieces.bytes()),
            pieces: Mutex::new(pieces),
            in_one,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            trouble: Mutex::new(None),
            direct: Mutex::new(None),
        }
    }

    fn run(&self, show: Show) {
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..CONNECTIONS.min(self.missing.len())).map(|_| scope.spawn(|| self.work())).collect();
            while workers.iter().any(|w| !w.is_finished()) {
                show("fetching", self.done.load(Ordering::Relaxed));
                std::thread::sleep(LOOK);
            }
        });
        show("fetching", self.done.load(Ordering::Relaxed));
    }

    fn work(&self) {
        while let Some((i, range)) = self.missing.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Err(trouble) = self.piece(*i, range) {
                self.stop.store(true, Ordering::Relaxed);
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
                return;
            }
        }
    }

    /// Downloads a piece and marks it.
    pub fn piece(&self, i: usize, range: &Range<u64>) -> Result<(), Trouble> {
        let failed = |e: io::Error| Trouble::Failed(self.job.failed(&e));
        let mut file = OpenOptions::new().write(true).open(self.job.partial()).map_err(failed)?;
        let mut trouble = None;
        let result = self.client.patiently(&mut |progress| {
            let mut reached = if self.in_one { 0 } else { *progress };
            let before = reached;
            let outcome = self.part(range.start + reached..range.end, &mut file, &mut reached, &mut trouble);
            if self.in_one && outcome.is_err() {
                self.done.fetch_sub(reached - before, Ordering::Relaxed);
            } else {
                *progress = reached;
            }
            outcome
        });
        match (trouble, result) {
            (Some(trouble), _) => return Err(trouble),
            (None, Err(failure)) => return Err(Trouble::Failed(failure)),
            (None, Ok(())) => {}
        }
        // Without a checksum of the complete file, the bytes must be on disk before the piece is marked.
        if self.job.sha256.is_none() || self.job.in_place {
            file.sync_data().map_err(failed)?;
        }
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).mark(i, WHOLE).map_err(failed)
    }

    /// Downloads a range; `reached` counts the bytes written.
    fn part(
        &self,
        range: Range<u64>,
        file: &mut File,
        reached: &mut u64,
        trouble: &mut Option<Trouble>,
    ) -> Result<(), Fault> {
        let stop = |trouble: &mut Option<Trouble>, new| {
            *trouble = Some(new);
            Err(Fault::Stop(String::new()))
        };
        let mut reply = match self.open(range.clone()) {
            Err(Fault::NoRanges) => return stop(trouble, Trouble::NoRanges),
            reply => reply?,
        };
        let other = reply.total.filter(|&total| total != self.job.len);
        if let Some(total) = other {
            let what = format!("the server's file has {total} bytes, and {} were announced", self.job.len);
            return stop(trouble, Trouble::Changed(what));
        }
        if self.job.check_etag && reply.etag.as_deref() != Some(self.job.state) {
            return stop(
                trouble,
                Trouble::Changed("the file changed on the server while it was fetched".into()),
            );
        }
        if let Err(e) = file.seek(SeekFrom::Start(range.start)) {
            return stop(trouble, Trouble::Failed(self.job.failed(&e)));
        }
        let (mut buffer, mut left) = (vec![0; BUFFER], range.end - range.start);
        while left > 0 {
            if self.stop.load(Ordering::Relaxed) || self.client.cancel.is_cancelled() {
                return stop(
                    trouble,
                    Trouble::Failed("stopped; the same command goes on where it was".into()),
                );
            }
            let early = |why: String| {
                Fault::Again(
                    format!("{}: the connection ended {left} bytes early{why}", host(&reply.url)),
                    None,
                )
            };
            let n = match reply.body.read(&mut buffer) {
                Ok(0) => return Err(early(String::new())),
                Ok(n) => n,
                Err(e) => return Err(early(format!(": {e}"))),
            };
            if let Err(e) = file.write_all(&buffer[..n]) {
                return stop(trouble, Trouble::Failed(self.job.failed(&e)));
            }
            left -= n as u64;
            *reached += n as u64;
            self.done.fetch_add(n as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Requests the last redirect's target directly. If that has expired, starts again at the original URL.
    fn open(&self, range: Range<u64>) -> Result<super::http::Reply, Fault> {
        let direct = || self.direct.lock().unwrap_or_else(PoisonError::into_inner);
        let known = direct().clone();
        if let Some(url) = known {
            match self.client.open(&url, Some(range.clone())) {
                Err(Fault::Stop(_)) => *direct() = None,
                reply => return reply,
            }
        }
        // A signed URL may expire between the redirect and the next request, so try twice.
        let reply = match self.client.open(&self.job.url, Some(range.clone())) {
            Err(Fault::Stop(_)) => self.client.open(&self.job.url, Some(range))?,
            reply => reply?,
        };
        if reply.url != self.job.url {
            *direct() = Some(reply.url.clone());
        }
        Ok(reply)
    }
}
