//! Unfinished files: written under a temporary name, and renamed when complete (R6).

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

/// Random names tried before giving up; each is one of 2⁶⁴.
const TRIES: usize = 16;

/// A file under a temporary name, deleted on drop unless kept.
///
/// The owner holds a lock on the file. The system releases the lock when the owner's process ends, even by a
/// crash. So a partial file that can be locked is a leftover. Process ids would not tell: they repeat in
/// containers, and not every system lists those in use.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Partial {
    /// Creates a file beside `out`, so that the rename stays within one file system. Removes leftovers of
    /// killed conversions.
    pub(crate) fn new(out: &Path) -> Result<Partial> {
        let name =
            out.file_name().ok_or_else(|| Error::Invalid(format!("{} is not a file name", out.display())))?;
        let stem = format!("{}.partial-", name.to_string_lossy());
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            if entry.file_name().to_str().is_some_and(|n| n.starts_with(&stem)) {
                remove_leftover(&entry.path());
            }
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        for _ in 0..TRIES {
            let path = folder.join(format!("{stem}{:016x}", RandomState::new().build_hasher().finish()));
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(path, e)),
            };
            // On a file system without locks this fails. The name alone then keeps files apart, and leftovers
            // are not removed.
            let _ = file.try_lock();
            // Before the lock was taken, another process may have removed the file as a leftover.
            if path.exists() {
                return Ok(Partial { path, file, kept: false });
            }
        }
        Err(Error::io(folder, std::io::Error::other("no temporary file can be created here")))
    }

    /// A file that is not deleted on drop, so that a later run can resume it.
    pub(super) fn lasting(path: PathBuf, file: File) -> Partial {
        Partial { path, file, kept: true }
    }

    /// Returns a handle for writing. The lock lasts until this handle and the [`Partial`] are dropped.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::io(&self.path, e))
    }

    /// The temporary path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file to `out`.
    pub(crate) fn keep(mut self, out: &Path) -> Result<()> {
        fs::rename(&self.path, out).map_err(|e| Error::io(out, e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a partial file that has no owner. A file that cannot be opened or locked counts as owned.
fn remove_leftover(path: &Path) {
    if let Ok(file) = OpenOptions::new().write(true).open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

/// A lock for conversions of one model into one cache, so that the second finds the result of the first.
pub(super) struct Turn {
    path: PathBuf,
    /// Locked until this is dropped; `None` on a file system without locks.
    _file: Option<File>,
}

impl Turn {
    /// Waits for the lock. Calls `wait` between attempts; an error from `wait` ends the waiting.
    pub(super) fn take(path: &Path, wait: &mut dyn FnMut() -> Result<()>) -> Result<Turn> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|e| Error::io(path, e))?;
        let file = loop {
            match file.try_lock() {
                Ok(()) => break Some(file),
                Err(TryLockError::WouldBlock) => wait()?,
                Err(TryLockError::Error(_)) => break None,
            }
        };
        Ok(Turn { path: path.to_path_buf(), _file: file })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Waiting processes have the file open: they get its lock, and look for the result. On Windows a
        // removed name stays in use until the last of them closes the file, and cannot be opened until then.
        // So the empty file stays there.
        if !cfg!(windows) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_partial_file_is_a_leftover_only_when_its_holder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("m.gguf");
        // Leftovers of older versions and of a killed run today, and a file of another output.
        for name in ["m.gguf.partial-1", "m.gguf.partial-00ff", "other.gguf.partial-1"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let first = Partial::new(&out).unwrap();
        assert_eq!(names(folder.path()).len(), 2, "leftovers are gone, others are not");
        let second = Partial::new(&out).unwrap();
        assert_ne!(first.path, second.path);
        let writer = first.file().unwrap();
        assert_eq!(names(folder.path()).len(), 3, "the first one's is no leftover");
        drop(writer);
        drop(Partial::new(&out).unwrap());
        first.keep(&out).unwrap();
        drop(second);
        assert_eq!(names(folder.path()), ["m.gguf", "other.gguf.partial-1"]);
    }

    #[test]
    fn turns_are_taken_one_after_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut waits = 0;
        let mut first = Some(Turn::take(&path, &mut || unreachable!("no one has it")).unwrap());
        let second = Turn::take(&path, &mut || {
            waits += 1;
            if waits == 3 {
                first = None;
            }
            Ok(())
        });
        assert!(second.is_ok() && waits == 3);
        let third = Turn::take(&path, &mut || Err(Error::Cancelled));
        // Dropping the first turn removed the file that the second has locked. The third creates a new file
        // and gets its lock, so both must look for the result. Where the file stays, the third waits.
        assert_eq!(third.is_ok(), !cfg!(windows));
    }
}
