//! Lists and removes what is in the caches: models from the hub, downloads by URL, conversions, and
//! leftovers.

use crate::Failure;
use crate::hub::cache::Repo;
use crate::hub::choice;
use crate::hub::conversion::SOURCE;
use crate::hub::fetch::{PARTIAL, PIECES};
use crate::hub::listing;
use crate::hub::settings::Settings;
use crate::locate::cache_folder;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The kind of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A model in the hub's cache, which is shared with other programs.
    Model,
    /// A file downloaded by its URL.
    Download,
    /// A Dollop file converted from another model.
    Conversion,
    /// A Dollop file converted while the other model was downloaded.
    Streamed,
    /// An unfinished download, headers read by `plan`, or a lock.
    Leftover,
}

/// An item in a cache, which can be removed.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    pub kind: Kind,
    /// Its name on the command line.
    pub name: String,
    pub bytes: u64,
    /// The source of a conversion, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Whether the source of a conversion no longer exists.
    pub source_is_gone: bool,
    /// Seconds since 1970: the last use of a conversion, or the time of a download.
    pub used: u64,
    pub path: PathBuf,
    /// All files of the item, links included.
    #[serde(skip)]
    pub files: Vec<PathBuf>,
}

/// The file that records the source of a conversion. It lies beside the conversion.
pub fn source_file(conversion: &Path) -> PathBuf {
    conversion.with_extension("source")
}

/// Records the source of a conversion, and that it was used now. Only `list` and `prune` need this.
pub fn remember(conversion: &Path, source: &Path) {
    let note = source_file(conversion);
    if let Ok(source) = std::path::absolute(source)
        && !note.exists()
    {
        let _ = fs::write(note, source.as_os_str().as_encoded_bytes());
    }
    touch(conversion);
}

/// Records the remote model that a conversion is of.
pub fn remember_remote(conversion: &Path, id: &str) {
    let _ = fs::write(source_file(conversion), id);
}

/// Records that a conversion is used now.
fn touch(conversion: &Path) {
    let _ = File::options().append(true).open(conversion).and_then(|f| f.set_modified(SystemTime::now()));
}

/// The remote model that a conversion is of, if it was converted while it was downloaded.
fn remote(conversion: &Path) -> Option<String> {
    let id = fs::read_to_string(source_file(conversion)).ok()?;
    ["hf:", "https://", "http://"].iter().any(|begin| id.starts_with(begin)).then_some(id)
}

/// The name in the list of a model that was converted while it was downloaded.
fn streamed_name(id: &str, hub: &Path) -> String {
    let parts = || {
        let (rest, commit) = id.strip_prefix("hf:")?.rsplit_once('@')?;
        let (repo, what) = rest.split_once(':')?;
        let is_main = Repo::new(hub, repo).commit("main").as_deref() == Some(commit);
        let revision = if is_main { String::new() } else { format!("@{commit}") };
        Some(format!("hf:{repo}:{}{revision}", choice::label(what)))
    };
    parts().unwrap_or_else(|| id.to_owned())
}

/// All items in the caches.
///
/// # Errors
/// If there is no cache folder.
pub fn all() -> Result<Vec<Item>, Failure> {
    let settings = Settings::read()?;
    let mut items = models(&settings.hub);
    let cache = cache_folder()?;
    items.extend(conversions(&cache, &settings.hub));
    items.extend(downloads(&cache));
    items.extend(leftovers(&cache, &settings.hub));
    Ok(items)
}

fn entries(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> + use<> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((e.path(), e.file_name().into_string().ok()?)))
        .collect();
    all.sort();
    all.into_iter()
}

fn seconds(path: &Path) -> u64 {
    let modified = fs::symlink_metadata(path).and_then(|m| m.modified()).ok();
    modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs())
}

/// Bytes that a file occupies; less than its length if the file is sparse.
fn taken(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    #[cfg(unix)]
    {
        std::os::unix::fs::MetadataExt::blocks(&meta).saturating_mul(512).min(meta.len())
    }
    #[cfg(not(unix))]
    {
        meta.len()
    }
}

fn item(kind: Kind, name: String, path: PathBuf, files: Vec<PathBuf>) -> Item {
    let bytes = files.iter().map(|f| taken(f)).sum();
    Item { kind, name, bytes, source: None, source_is_gone: false, used: seconds(&path), path, files }
}

/// The repository's name for a folder in the hub's cache.
fn repo_of(folder: &str) -> Option<String> {
    folder.strip_prefix("models--").filter(|r| r.matches("--").count() == 1).map(|r| r.replace("--", "/"))
}

fn models(hub: &Path) -> Vec<Item> {
    let mut items = Vec::new();
    for (folder, name) in entries(hub) {
        let Some(repo_name) = repo_of(&name) else { continue };
        let repo = Repo { folder };
        let main = repo.commit("main");
        for (snapshot, commit) in entries(&repo.folder.join("snapshots")) {
            let seen = listing::seen(&snapshot, &commit);
            for candidate in choice::candidates(&seen) {
                let revision =
                    if main.as_deref() == Some(&commit) { String::new() } else { format!("@{commit}") };
                let files: Vec<_> = candidate.files.iter().map(|f| snapshot.join(&f.path)).collect();
                let path = repo.model(&commit, &candidate);
                let name = format!("hf:{repo_name}:{}{revision}", candidate.label);
                let used = files.iter().map(|f| seconds(f)).max().unwrap_or(0);
                items.push(Item { bytes: candidate.bytes, used, ..item(Kind::Model, name, path, files) });
            }
        }
    }
    items
}

fn conversions(cache: &Path, hub: &Path) -> Vec<Item> {
    let of = |(path, name): (PathBuf, String)| {
        name.ends_with(".gguf").then(|| {
            let note = source_file(&path);
            if let Some(id) = remote(&path) {
                let files = vec![path.clone(), note];
                return item(Kind::Streamed, streamed_name(&id, hub), path, files);
            }
            let source = fs::read_to_string(&note).ok().map(PathBuf::from);
            let files = if note.exists() { vec![path.clone(), note] } else { vec![path.clone()] };
            let source_is_gone = source.as_ref().is_some_and(|s| !s.exists());
            Item { source, source_is_gone, ..item(Kind::Conversion, name, path, files) }
        })
    };
    entries(cache).filter_map(of).collect()
}

fn downloads(cache: &Path) -> Vec<Item> {
    let folders = entries(&cache.join("downloads"));
    let files = folders.flat_map(|(folder, _)| entries(&folder).collect::<Vec<_>>());
    let whole = files.filter(|(_, name)| name.to_ascii_lowercase().ends_with(".gguf"));
    whole.map(|(path, name)| item(Kind::Download, name, path.clone(), vec![path])).collect()
}

fn leftovers(cache: &Path, hub: &Path) -> Vec<Item> {
    let mut items = Vec::new();
    let mut unfinished = |folder: &Path, lock: &dyn Fn(&str) -> PathBuf| {
        for (path, name) in entries(folder) {
            let Some(of) = name.strip_suffix(PARTIAL) else { continue };
            let held = File::open(lock(of)).is_ok_and(|f| f.try_lock().is_err());
            if !held {
                let pieces = folder.join(format!("{of}{PIECES}"));
                items.push(item(Kind::Leftover, name.clone(), path.clone(), vec![path, pieces]));
            }
        }
    };
    for (folder, name) in entries(hub).filter(|(_, name)| repo_of(name).is_some()) {
        unfinished(&folder.join("blobs"), &|blob| {
            hub.join(".locks").join(&name).join(format!("{blob}.lock"))
        });
    }
    for (folder, _) in entries(&cache.join("downloads")) {
        unfinished(&folder, &|file| folder.join(format!("{file}.lock")));
    }
    for (path, name) in entries(&cache.join("headers")) {
        let files = entries(&path).map(|(file, _)| file).collect();
        items.push(item(Kind::Leftover, format!("headers of {name}"), path, files));
    }
    items.extend(unfinished_conversions(cache));
    // Records of conversions that were removed by other means.
    for (path, name) in entries(cache) {
        if name.ends_with(".source") && !path.with_extension("gguf").exists() {
            items.push(item(Kind::Leftover, name, path.clone(), vec![path]));
        }
    }
    items
}

/// Conversions of remote models that were interrupted, and that no process continues now.
fn unfinished_conversions(cache: &Path) -> Vec<Item> {
    let of = |(path, name): (PathBuf, String)| {
        let out = cache.join(name.strip_suffix(SOURCE)?);
        let beside = |end: &str| {
            let mut path = out.clone().into_os_string();
            path.push(end);
            PathBuf::from(path)
        };
        let held = File::open(out.with_extension("lock")).is_ok_and(|f| f.try_lock().is_err());
        let mut files = vec![beside(".resume"), beside(".resume-file")];
        walk(&path, &mut files);
        (!held).then(|| item(Kind::Leftover, name, path, files))
    };
    entries(cache).filter_map(of).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for (path, _) in entries(folder) {
        match fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// Removes an item's files, and blobs that are no longer linked. Returns the bytes freed.
///
/// # Errors
/// System errors, naming the file.
pub fn remove(item: &Item) -> Result<u64, Failure> {
    let mut blobs = HashSet::new();
    for file in &item.files {
        if let Ok(to) = fs::canonicalize(file) {
            blobs.insert(to);
        }
        match fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", file.display()).into());
            }
            _ => {}
        }
    }
    let repo = item
        .path
        .ancestors()
        .find(|up| up.file_name().and_then(|n| n.to_str()).is_some_and(|n| repo_of(n).is_some()));
    if let (Kind::Model, Some(repo)) = (item.kind, repo) {
        let mut linked = HashSet::new();
        links(&repo.join("snapshots"), &mut linked);
        for blob in
            blobs.difference(&linked).filter(|b| b.starts_with(repo.canonicalize().unwrap_or_default()))
        {
            fs::remove_file(blob).map_err(|e| format!("{}: {e}", blob.display()))?;
        }
        if linked.is_empty() {
            fs::remove_dir_all(repo).map_err(|e| format!("{}: {e}", repo.display()))?;
        }
    } else if item.path.is_dir() {
        empty(&item.path);
    }
    Ok(item.bytes)
}

/// Removes a folder and the folders in it, if they hold no files.
fn empty(folder: &Path) {
    entries(folder).for_each(|(path, _)| empty(&path));
    let _ = fs::remove_dir(folder);
}

/// Collects the blobs that snapshots link to, and removes empty folders.
fn links(folder: &Path, linked: &mut HashSet<PathBuf>) {
    for (path, _) in entries(folder) {
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            links(&path, linked);
            let _ = fs::remove_dir(&path);
        } else if let Ok(to) = path.canonicalize() {
            linked.insert(to);
        }
    }
}
