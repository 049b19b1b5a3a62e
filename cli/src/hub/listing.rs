//! The files of a repository, from the hub or from the cache.

use super::http::{Client, host};
use super::name::{HubName, encoded, is_inside};
use crate::Failure;
use serde::Deserialize;
use std::fs;
use std::path::Path;

const PAGES: usize = 200;
const PAGE_BYTES: u64 = 16 << 20;
const FILES: usize = 100_000;
/// Deepest nesting of folders in a snapshot.
const DEPTH: usize = 8;

/// The files of a repository at one commit.
#[derive(Debug)]
pub struct Listing {
    pub commit: String,
    pub files: Vec<Entry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path inside the repository.
    pub path: String,
    pub len: u64,
    /// File name of its bytes in the cache: SHA-256 for large files, git's SHA-1 for small ones.
    pub blob: String,
    /// Whether `blob` is the SHA-256.
    pub has_sha256: bool,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

/// Whether a text is a hexadecimal checksum of one of these lengths. Checksums become file names, so anything
/// else is refused.
pub fn is_hex(text: &str, lens: &[usize]) -> bool {
    lens.contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Requests the listing of a repository from the hub.
///
/// # Errors
/// Network errors; file names that lead outside of the repository.
pub fn ask(client: &Client, name: &HubName) -> Result<Listing, Failure> {
    let endpoint = &client.settings.endpoint;
    let wrong = |what: String| Failure(format!("{}: {what}", host(endpoint)));
    let models = format!("{endpoint}/api/models/{}", name.repo);
    let revision = name.revision.replace('/', "%2F");
    let url = format!(
        "{models}/revision/{}",
        if revision == name.revision { encoded(&revision) } else { revision }
    );
    let (text, _) = client.text(&url, PAGE_BYTES)?;
    let Revision { sha } =
        serde_json::from_str(&text).map_err(|e| wrong(format!("this is no answer of a hub: {e}")))?;
    if !is_hex(&sha, &[40, 64]) {
        return Err(wrong(format!("`{sha}` is no commit")));
    }
    let mut files = Vec::new();
    let mut page = Some(format!("{models}/tree/{sha}?recursive=true"));
    for _ in 0..PAGES {
        let Some(url) = page.take() else { break };
        // Pages of a listing must be on the same host.
        if !url.starts_with(&format!("{endpoint}/")) {
            return Err(wrong(format!("a listing that goes on at {}", host(&url))));
        }
        let (text, next) = client.text(&url, PAGE_BYTES)?;
        let nodes: Vec<Node> =
            serde_json::from_str(&text).map_err(|e| wrong(format!("this is no listing: {e}")))?;
        for node in nodes.into_iter().filter(|n| n.kind == "file") {
            files.push(entry(node).map_err(wrong)?);
        }
        if files.len() > FILES {
            return Err(wrong(format!("more than {FILES} files")));
        }
        page = next;
    }
    if page.is_some() {
        return Err(wrong(format!("a listing of more than {PAGES} pages")));
    }
    Ok(Listing { commit: sha, files })
}

fn entry(node: Node) -> Result<Entry, String> {
    if !is_inside(&node.path) {
        return Err(format!(
            "the listing names a file outside the repository, `{}`; this repository is refused",
            node.path
        ));
    }
    let (has_sha256, blob, len) = match node.lfs {
        Some(large) => (true, large.oid, large.size),
        None => (false, node.oid, node.size),
    };
    if !is_hex(&blob, if has_sha256 { &[64] } else { &[40, 64] }) {
        return Err(format!("the listing gives `{}` the checksum `{blob}`, which is none", node.path));
    }
    Ok(Entry { path: node.path, len, blob, has_sha256 })
}

/// The files in a snapshot's folder; dangling links are left out.
pub fn seen(snapshot: &Path, commit: &str) -> Listing {
    let mut files = Vec::new();
    walk(snapshot, "", DEPTH, &mut files);
    Listing { commit: commit.to_owned(), files }
}

fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<Entry>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_dir() && depth > 0 => {
                walk(&entry.path(), &format!("{path}/"), depth - 1, files)
            }
            Ok(meta) if meta.is_file() => {
                files.push(Entry { path, len: meta.len(), blob: String::new(), has_sha256: false });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, oid: &str, lfs: Option<&str>) -> Result<Entry, String> {
        let lfs = lfs.map(|oid| Large { oid: oid.into(), size: 9 });
        entry(Node { kind: "file".into(), path: path.into(), size: 3, oid: oid.into(), lfs })
    }

    #[test]
    fn entries_of_a_listing_are_checked() {
        let (sha1, sha256) = ("a".repeat(40), "0".repeat(64));
        assert_eq!(of("x y/é.gguf", &sha1, Some(&sha256)).unwrap().len, 9);
        assert!(!of("config.json", &sha1, None).unwrap().has_sha256);
        for path in ["../x", "/x", "a/../x", "a\\x", "C:x", "", "a//x", "a\nb"] {
            assert!(of(path, &sha1, None).is_err(), "{path:?}");
        }
        for blob in ["../../x", "", "A".repeat(64).as_str(), &sha1] {
            assert!(of("x", &sha1, Some(blob)).is_err(), "{blob}");
        }
    }
}
