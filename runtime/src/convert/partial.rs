//! Files on their way: written under a name of their own, renamed when whole (R6).

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

/// New names tried: each is one of 2⁶⁴.
const TRIES: usize = 16;

/// A file under a temporary name, deleted unless kept.
///
/// Its holder has a lock on it, which the system lets go of when the holder ends, however that happens. So a file of this
/// kind that can be locked is a leftover, whatever process numbers say: those repeat in containers, and not every system
/// tells which are in use.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Partial {
    /// Beside `out`, so that the rename stays within one file system. Leftovers of conversions that were killed go.
    pub(crate) fn new(out: &Path) -> Result<Partial> {
        let name =
            out.file_name().ok_or_else(|| Error::Invalid(format!("{} is no file name", out.display())))?;
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
            // On a file system without locks the name alone tells this file from others, and leftovers stay.
            let _ = file.try_lock();
            // Before it was locked, another process may have taken it for a leftover.
            if path.exists() {
                return Ok(Partial { path, file, kept: false });
            }
        }
        Err(Error::io(folder, std::io::Error::other("no new file can be made here")))
    }

    /// A file that stays for another try when this one fails.
    pub(super) fn lasting(path: PathBuf, file: File) -> Partial {
        Partial { path, file, kept: true }
    }

    /// To write to. The lock stays until this and the [`Partial`] are gone.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::io(&self.path, e))
    }

    /// Where it is meanwhile.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name.
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

/// Removes a partial file whose holder is gone. A file that cannot be opened or locked still has a holder.
fn remove_leftover(path: &Path) {
    if let Ok(file) = OpenOptions::new().write(true).open(path)
        && file.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

/// A lock that conversions of one model into one cache take, so that the second finds what the first made.
pub(super) struct Turn {
    path: PathBuf,
    /// Locked while this lives; `None` where the file system has no locks.
    _file: Option<File>,
}

impl Turn {
    /// Waits for the others. `wait` is called again and again meanwhile, and ends the wait with an error.
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
        // Those who wait have it open, get its lock, and look for what was made. On Windows the name would go with the last of them, and
        // until then nobody could open it: there the empty file stays.
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
        // As older versions, and a killed one of today, leave them; and a file of another output.
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
        // The second one's file was removed with the first: the third has a new one, and both must look for the result. Where the file
        // stays, the third waits.
        assert_eq!(third.is_ok(), !cfg!(windows));
    }
}
