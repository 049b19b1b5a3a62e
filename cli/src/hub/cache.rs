//! The hub's cache on disk, shared with Hugging Face's own programs. Its layout is
//! `models--ORG--NAME/{blobs/CHECKSUM, refs/REVISION, snapshots/COMMIT/PATH → blobs}`.

use super::choice::{self, Candidate, INDEX};
use super::listing::{self, Entry, is_hex};
use super::name::HubName;
use crate::Failure;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One repository in the cache.
pub struct Repo {
    pub folder: PathBuf,
}

impl Repo {
    pub fn new(hub: &Path, repo: &str) -> Repo {
        Repo { folder: hub.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    pub fn blob(&self, entry: &Entry) -> PathBuf {
        self.folder.join("blobs").join(&entry.blob)
    }

    /// The lock that other programs take, too, while they write a blob.
    pub fn lock(&self, hub: &Path, entry: &Entry) -> PathBuf {
        let name = self.folder.file_name().unwrap_or_default();
        hub.join(".locks").join(name).join(format!("{}.lock", entry.blob))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit of a revision when it was last fetched.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let commit = match is_hex(revision, &[40, 64]) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_owned(),
        };
        is_hex(&commit, &[40, 64]).then_some(commit)
    }

    /// Records the current commit of a revision.
    pub fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if is_hex(revision, &[40, 64]) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        fs::write(path, commit)
    }

    /// The complete model of this name in the cache, with the path that opens it.
    pub fn here(&self, name: &HubName) -> Option<(Candidate, PathBuf)> {
        let commit = self.commit(&name.revision)?;
        let snapshot = self.snapshot(&commit);
        let seen = listing::seen(&snapshot, &commit);
        let choice = choice::choose(&seen, name.want.as_deref(), u64::MAX).ok()?;
        let model = self.model(&commit, &choice.candidate);
        (!choice.candidate.file.is_empty() || is_whole(&model)).then_some((choice.candidate, model))
    }

    /// The path that opens a model of a commit.
    pub fn model(&self, commit: &str, candidate: &Candidate) -> PathBuf {
        self.snapshot(commit).join(&candidate.file)
    }

    /// Links a blob under its name in a snapshot.
    pub fn link(&self, commit: &str, entry: &Entry) -> Result<(), Failure> {
        let path = self.snapshot(commit).join(&entry.path);
        let failed = |e: io::Error| Failure(format!("{}: {e}", path.display()));
        if fs::metadata(&path).is_ok_and(|m| m.len() == entry.len) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(&self.folder)).map_err(failed)?;
        // Remove a dangling link, or a file that another process has half written.
        let _ = fs::remove_file(&path);
        let up = "../".repeat(entry.path.split('/').count() + 1);
        match link(&Path::new(&up).join("blobs").join(&entry.blob), &path) {
            Ok(()) => Ok(()),
            // Another process created it first.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Without symbolic links, the file itself is stored here.
            Err(_) => fs::rename(self.blob(entry), &path).map_err(failed),
        }
    }
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn link(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

#[cfg(not(any(unix, windows)))]
fn link(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a folder has all shards that its index names.
fn is_whole(folder: &Path) -> bool {
    match fs::read_to_string(folder.join(INDEX)) {
        Ok(index) => dollop::internal::format::safetensors::shards(&index)
            .is_ok_and(|shards| shards.iter().all(|shard| folder.join(shard).is_file())),
        Err(_) => true,
    }
}
