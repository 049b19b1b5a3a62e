//! Conversions that are done once: a folder of Dollop files, keyed by what they were made from.

use super::source::Source;
use super::{ConvertOptions, convert_source};
use crate::error::{Error, Result};
use crate::format::dollop;
use crate::telemetry::{CancelToken, Progress};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The Dollop file for a foreign model: an earlier conversion if the source is unchanged, else a new one in `folder`.
/// Older conversions of the same source are removed once the new one is there.
///
/// # Errors
/// As [`super::convert`].
pub fn cached(
    source: &Path,
    folder: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf> {
    let path = source.canonicalize().map_err(|e| Error::io(source, e))?;
    let opened = Source::open(&path)?;
    // The place of the source names the family of its conversions; its state and the options name the one.
    let place = format!("{:08x}", crc32fast::hash(path.as_os_str().as_encoded_bytes()));
    let mut state = crc32fast::Hasher::new();
    for file in opened.files() {
        let meta = fs::metadata(file).map_err(|e| Error::io(file, e))?;
        let changed =
            meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
        state.update(file.as_os_str().as_encoded_bytes());
        state.update(&meta.len().to_le_bytes());
        state.update(&changed.to_le_bytes());
    }
    let (dense, max) = (options.level_dense, options.max_level);
    state.update(
        format!("{} {dense} {max} {:?} {:?}", dollop::VERSION, options.group, options.level_embed).as_bytes(),
    );
    if let Some(calibration) = &options.calibration {
        state.update(&calibration.fingerprint().to_le_bytes());
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let family = format!("{stem}-{place}-");
    let target = folder.join(format!("{family}{:08x}.gguf", state.finalize()));
    if target.exists() {
        return Ok(target);
    }
    convert_source(&opened, &target, options, cancel, progress)?;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let stale =
            entry.file_name().to_str().is_some_and(|n| n.starts_with(&family) && n.ends_with(".gguf"));
        if stale && entry.path() != target {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(target)
}
