//!
//! The prefix cache: prompt prefixes on disk, which outlive the server. Each is a saved session in a file,
//! named by a hash of its tokens.
//!
//! Several servers may use one folder. A file is written under a temporary name, then renamed, and never
//! changed. Any file may be deleted at any time.

use crate::pool::shared;
use dollop::{Engine, Error, Session};
use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Minimum number of tokens for which writing or reading a file pays off.
pub const LEAST: usize = 64;

/// File name suffix.
const SUFFIX: &str = ".prefix";

/// A prefix cache in a folder.
pub struct Prefixes {
    engine: Engine,
    folder: PathBuf,
    /// Limit on the bytes of all files.
    limit: u64,
    /// The tokens of each file. `None` if the file is damaged or belongs to another model.
    known: Mutex<HashMap<PathBuf, Option<Arc<[u32]>>>>,
    counts: [AtomicU64; 3],
}

/// Counters of the prefix cache since the server started.
pub struct PrefixCounts {
    /// Prompt tokens taken from files instead of prefill.
    pub tokens: u64,
    /// Number of files written.
    pub saved: u64,
    /// Number of files that could not be used.
    pub skipped: u64,
}

const TOKENS: usize = 0;
const SAVED: usize = 1;
const SKIPPED: usize = 2;

impl Prefixes {
    /// Opens the cache in `folder`, which is created if needed. Its files may take `limit` bytes.
    ///
    /// # Errors
    /// `Io` if the folder cannot be created.
    pub fn new(engine: &Engine, folder: PathBuf, limit: u64) -> Result<Prefixes, Error> {
        fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        let (engine, known, counts) = (engine.clone(), Mutex::default(), Default::default());
        Ok(Prefixes { engine, folder, limit, known, counts })
    }

    /// The counters.
    pub fn counts(&self) -> PrefixCounts {
        let [tokens, saved, skipped] = self.counts.each_ref().map(|n| n.load(Ordering::Relaxed));
        PrefixCounts { tokens, saved, skipped }
    }

    fn count(&self, what: usize, n: usize) {
        self.counts[what].fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Restores `session` from the file that shares the longest prefix with `prompt`. The file must save at
    /// least [`LEAST`] tokens of prefill beyond the `known` ones. Returns the number of tokens that the
    /// session then holds, or `None` if no file was loaded.
    pub fn load(&self, session: &mut Session, prompt: &[u32], known: usize) -> Option<usize> {
        let context = session.context();
        // The last tokens of a prompt are always prefilled.
        let most = prompt.len().saturating_sub(self.engine.least_call());
        loop {
            let worth = |tokens: &[u32]| shared(tokens, prompt).min(most);
            let all = self.look().into_iter();
            let fit = all.filter(|(_, tokens)| tokens.len() <= context);
            let (path, tokens) = fit.max_by_key(|(_, tokens)| worth(tokens))?;
            if worth(&tokens) < known + LEAST {
                return None;
            }
            match session.restore(&path) {
                Ok(()) => {
                    // The modification time is the time of last use. If it cannot be set, the time of writing
                    // counts.
                    let _ = File::options()
                        .append(true)
                        .open(&path)
                        .and_then(|file| file.set_modified(SystemTime::now()));
                    self.count(TOKENS, worth(&tokens));
                    return Some(tokens.len());
                }
                // Another file may share nearly as many tokens, so try again without this one.
                Err(e) => self.skip(path, &e),
            }
            if session.tokens().is_empty() && known > 0 {
                return self.load(session, prompt, 0).or(Some(0));
            }
        }
    }

    /// Writes a session to a file, unless an existing file already begins with all its tokens.
    pub fn save(&self, session: &Session) {
        let tokens = session.tokens();
        let has = |(_, of): &(PathBuf, Arc<[u32]>)| shared(of, tokens) == tokens.len();
        if tokens.len() < LEAST || self.look().iter().any(has) {
            return;
        }
        let bytes = match session.saved_bytes() {
            Ok(bytes) if bytes <= self.limit => bytes,
            Ok(bytes) => {
                return log::debug!(
                    "a prefix is not saved: {} tokens take {bytes} bytes, more than the cache's limit",
                    tokens.len()
                );
            }
            Err(e) => return log::warn!("a prefix is not saved: {e}"),
        };
        self.make_room(bytes);
        let path = self.folder.join(format!("{}{SUFFIX}", self.name(tokens)));
        match session.save(&path) {
            Ok(_) => {
                self.count(SAVED, 1);
                lock(&self.known).insert(path, Some(tokens.into()));
            }
            Err(e) => log::warn!("a prefix is not saved: {e}"),
        }
    }

    /// A file name stem from a hash of the model and the tokens.
    fn name(&self, tokens: &[u32]) -> String {
        let info = self.engine.info();
        let half = |seed: u64| {
            let mut hasher = DefaultHasher::new();
            (seed, &info.name, &info.mode, info.bytes, tokens).hash(&mut hasher);
            hasher.finish()
        };
        format!("{:016x}{:016x}", half(0), half(1))
    }

    /// The usable files with their tokens. Each new file is opened once.
    fn look(&self) -> Vec<(PathBuf, Arc<[u32]>)> {
        let mut known = lock(&self.known);
        let files: Vec<PathBuf> = self.files().into_iter().map(|(path, ..)| path).collect();
        known.retain(|path, _| files.contains(path));
        for path in files {
            if known.contains_key(&path) {
                continue;
            }
            let tokens = match self.engine.saved_tokens(&path) {
                Ok(tokens) => Some(tokens.into()),
                Err(e) => {
                    log::warn!("a prefix file is skipped: {e}");
                    self.count(SKIPPED, 1);
                    None
                }
            };
            known.insert(path, tokens);
        }
        known.iter().filter_map(|(path, tokens)| Some((path.clone(), tokens.clone()?))).collect()
    }

    fn skip(&self, path: PathBuf, why: &Error) {
        log::warn!("a prefix file is skipped: {why}");
        self.count(SKIPPED, 1);
        lock(&self.known).insert(path, None);
    }

    /// All files of the cache: path, time of last use, bytes.
    fn files(&self) -> Vec<(PathBuf, SystemTime, u64)> {
        let Ok(folder) = fs::read_dir(&self.folder) else { return Vec::new() };
        let file = |entry: fs::DirEntry| {
            let (path, meta) = (entry.path(), entry.metadata().ok()?);
            let is = meta.is_file() && path.to_str()?.ends_with(SUFFIX);
            is.then(|| (path, meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len()))
        };
        folder.flatten().filter_map(file).collect()
    }

    /// Removes the least recently used files until `bytes` more fit the limit.
    fn make_room(&self, bytes: u64) {
        let mut files = self.files();
        files.sort_by_key(|(_, used, _)| *used);
        let mut all: u64 = files.iter().map(|(.., bytes)| bytes).sum();
        for (path, _, freed) in files {
            if all + bytes <= self.limit {
                return;
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    log::warn!("{}: {e}", path.display());
                }
                _ => all -= freed,
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
