//! Beginnings of prompts on disk: sessions that outlive the server, each in a file named by a hash of its tokens.
//!
//! Several servers may use one folder: files are written under another name and renamed, never changed, and may go at any time.

use crate::pool::shared;
use dollop::internal::kernels::MANY;
use dollop::{Engine, Error, Session};
use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Tokens that are worth a file, and that are worth reading one.
pub const LEAST: usize = 64;

/// What names end in.
const SUFFIX: &str = ".prefix";

/// The folder.
pub struct Prefixes {
    engine: Engine,
    folder: PathBuf,
    /// Bytes of all files.
    limit: u64,
    /// What is in the files: nothing where one is another model's, or damaged.
    known: Mutex<HashMap<PathBuf, Option<Arc<[u32]>>>>,
    counts: [AtomicU64; 3],
}

/// What was done with files since the start.
pub struct PrefixCounts {
    /// Tokens that were read from files.
    pub tokens: u64,
    /// Files written.
    pub saved: u64,
    /// Files that could not be used.
    pub skipped: u64,
}

const TOKENS: usize = 0;
const SAVED: usize = 1;
const SKIPPED: usize = 2;

impl Prefixes {
    /// A folder, which is made, whose files may take so many bytes.
    ///
    /// # Errors
    /// `Io`, where it cannot be made.
    pub fn new(engine: &Engine, folder: PathBuf, limit: u64) -> Result<Prefixes, Error> {
        fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        let (engine, known, counts) = (engine.clone(), Mutex::default(), Default::default());
        Ok(Prefixes { engine, folder, limit, known, counts })
    }

    /// What was done.
    pub fn counts(&self) -> PrefixCounts {
        let [tokens, saved, skipped] = self.counts.each_ref().map(|n| n.load(Ordering::Relaxed));
        PrefixCounts { tokens, saved, skipped }
    }

    fn count(&self, what: usize, n: usize) {
        self.counts[what].fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Gives `session` the file that knows most of `prompt`, if that is enough more than `known` tokens: how many it has then.
    pub fn load(&self, session: &mut Session, prompt: &[u32], known: usize) -> Option<usize> {
        let context = session.context();
        // The last tokens of a prompt are read in any case.
        let most = prompt.len().saturating_sub(MANY);
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
                    // Used last now. Where the system does not let it be noted, files go by when they were written.
                    let _ = File::options()
                        .append(true)
                        .open(&path)
                        .and_then(|file| file.set_modified(SystemTime::now()));
                    self.count(TOKENS, worth(&tokens));
                    return Some(tokens.len());
                }
                // Another one may know nearly as much.
                Err(e) => self.skip(path, &e),
            }
            if session.tokens().is_empty() && known > 0 {
                return self.load(session, prompt, 0).or(Some(0));
            }
        }
    }

    /// Writes a session, unless a file begins with all that it holds.
    pub fn save(&self, session: &Session) {
        let tokens = session.tokens();
        let has = |(_, of): &(PathBuf, Arc<[u32]>)| shared(of, tokens) == tokens.len();
        if tokens.len() < LEAST || self.look().iter().any(has) {
            return;
        }
        let bytes = match session.saved_bytes() {
            Ok(bytes) if bytes <= self.limit => bytes,
            Ok(bytes) => {
                return log::debug!("{} tokens take {bytes} bytes: more than all prefixes may", tokens.len());
            }
            Err(e) => return log::warn!("a prefix is not kept: {e}"),
        };
        self.make_room(bytes);
        let path = self.folder.join(format!("{}{SUFFIX}", self.name(tokens)));
        match session.save(&path) {
            Ok(_) => {
                self.count(SAVED, 1);
                lock(&self.known).insert(path, Some(tokens.into()));
            }
            Err(e) => log::warn!("a prefix is not kept: {e}"),
        }
    }

    /// A name of these tokens with this model.
    fn name(&self, tokens: &[u32]) -> String {
        let info = self.engine.info();
        let half = |seed: u64| {
            let mut hasher = DefaultHasher::new();
            (seed, &info.name, &info.mode, info.bytes, tokens).hash(&mut hasher);
            hasher.finish()
        };
        format!("{:016x}{:016x}", half(0), half(1))
    }

    /// The files that can be used, with their tokens. A new one is opened once.
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
                    log::warn!("a prefix is skipped: {e}");
                    self.count(SKIPPED, 1);
                    None
                }
            };
            known.insert(path, tokens);
        }
        known.iter().filter_map(|(path, tokens)| Some((path.clone(), tokens.clone()?))).collect()
    }

    fn skip(&self, path: PathBuf, why: &Error) {
        log::warn!("a prefix is skipped: {why}");
        self.count(SKIPPED, 1);
        lock(&self.known).insert(path, None);
    }

    /// All files: path, time of last use, bytes.
    fn files(&self) -> Vec<(PathBuf, SystemTime, u64)> {
        let Ok(folder) = fs::read_dir(&self.folder) else { return Vec::new() };
        let file = |entry: fs::DirEntry| {
            let (path, meta) = (entry.path(), entry.metadata().ok()?);
            let is = meta.is_file() && path.to_str()?.ends_with(SUFFIX);
            is.then(|| (path, meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len()))
        };
        folder.flatten().filter_map(file).collect()
    }

    /// Removes the files that were not used for longest, until so many bytes may be added.
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
