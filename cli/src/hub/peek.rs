//! Downloads only the headers of a remote model, a few megabytes. They are written to sparse files of full
//! length, which the library reads like any other model.

use super::choice::{Candidate, SAFETENSORS};
use super::http::{Client, Fault};
use super::listing::Entry;
use super::{narrowed, url};
use crate::Failure;
use dollop::internal::format::Gguf;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// First bytes to read of the file with the metadata: a vocabulary takes megabytes.
pub const FIRST: u64 = 1 << 20;
/// First bytes to read of other files.
pub const OTHERS: u64 = 64 << 10;
/// The most bytes added per step, because more might be weights.
const STEP: u64 = 2 << 20;
pub const MOST: u64 = 128 << 20;
/// The largest of the small files, which a plan does not need.
const NOT_READ: &str = "tokenizer.json";

/// Creates a copy of the model without weights in `folder`, and returns the path that opens it.
///
/// # Errors
/// Network errors, and errors in the headers.
pub fn headers(
    client: &Client,
    repo: &str,
    commit: &str,
    candidate: &mut Candidate,
    folder: &Path,
    files: &[Entry],
) -> Result<PathBuf, Failure> {
    let of = |entry: &Entry| url(&client.settings.endpoint, repo, commit, &entry.path);
    let name = |entry: &Entry| folder.join(entry.path.rsplit('/').next().unwrap_or_default());
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    if candidate.label == SAFETENSORS {
        for entry in
            candidate.files.clone().iter().filter(|f| !f.path.ends_with(".safetensors") && f.path != NOT_READ)
        {
            let (text, _) = client.text(&of(entry), MOST)?;
            fs::write(name(entry), text).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        narrowed(folder, files, candidate)?;
    }
    for (i, entry) in candidate.files.iter().enumerate().filter(|(_, f)| is_weights(&f.path)) {
        let first = if i == 0 { FIRST } else { OTHERS };
        let prefix = prefix(client, &of(entry), (&entry.path, entry.len), first)
            .map_err(|Failure(why)| format!("{}: {why}", entry.path))?;
        with_holes(&name(entry), &prefix, entry.len).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    Ok(if candidate.file.is_empty() { folder.to_path_buf() } else { name(&candidate.files[0]) })
}

pub fn is_weights(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    lower.ends_with(".gguf") || lower.ends_with(".safetensors")
}

/// The first bytes of a file, up to the end of its header.
///
/// # Errors
/// Network errors; errors in the header.
pub fn prefix(client: &Client, url: &str, (path, len): (&str, u64), first: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut want = first.min(len);
    loop {
        let had = bytes.len() as u64;
        client.patiently(&mut |progress| {
            let from = bytes.len() as u64;
            let mut reply = client.open(url, Some(from..want)).map_err(|fault| match fault {
                Fault::NoRanges => Fault::Stop(
                    "the server does not send parts of files: fetch the model with `dollop pull` first"
                        .into(),
                ),
                fault => fault,
            })?;
            if reply.total.is_some_and(|total| total != len) {
                return Err(Fault::Stop("the file has another length than the hub says; try again".into()));
            }
            let read = (&mut reply.body).take(want - from).read_to_end(&mut bytes);
            *progress = bytes.len() as u64 - had;
            match read {
                Ok(_) if bytes.len() as u64 == want => Ok(()),
                Ok(_) => Err(Fault::Again("the connection ended early".into(), None)),
                Err(e) => Err(Fault::Again(e.to_string(), None)),
            }
        })?;
        let next = needed(&bytes, path, len)?;
        if next <= want || want == len {
            return Ok(bytes);
        }
        if next > MOST {
            return Err(format!("a header of more than {MOST} bytes").into());
        }
        want = next.min(len);
    }
}

/// How many bytes of the file are needed for a complete header.
fn needed(bytes: &[u8], path: &str, len: u64) -> Result<u64, Failure> {
    let here = bytes.len() as u64;
    if path.to_ascii_lowercase().ends_with(".gguf") {
        let whole = Gguf::parse_prefix(bytes, len)?.is_some();
        return Ok(if whole { here } else { here + here.min(STEP) });
    }
    let len = bytes.first_chunk::<8>().map_or(u64::MAX, |n| u64::from_le_bytes(*n));
    Ok(len.saturating_add(8))
}

/// Writes a file of this length that begins so and goes on with a hole.
///
/// # Errors
/// Those of the file system.
pub fn with_holes(path: &Path, prefix: &[u8], len: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(prefix)?;
    file.set_len(len)?;
    file.sync_all()
}

/// The length of a file's header, if it has one.
pub fn header_bytes(path: &Path) -> Option<u64> {
    let bytes = dollop::internal::store::map(path).ok()?;
    if path.to_str()?.to_ascii_lowercase().ends_with(".gguf") {
        return Gguf::parse(&bytes).ok()?.tensors.iter().map(|t| t.offset).min();
    }
    u64::from_le_bytes(*bytes.first_chunk::<8>()?).checked_add(8)
}
