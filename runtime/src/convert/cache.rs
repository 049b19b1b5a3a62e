//! Conversions that are done once: a folder of Dollop files, keyed by what they were made from.

use super::name::absolute;
use super::partial::Turn;
use super::source::Source;
use super::{ConvertOptions, check, convert_source, model_name};
use crate::error::{Error, Result};
use crate::format::dollop;
use crate::model::file::NestedFile;
use crate::quant::{self, GroupParams};
use crate::store;
use crate::telemetry::{CancelToken, Progress};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Between two looks at whether another process is done with the same conversion.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a conversion is for: a model that cannot do it is refused before an hour is spent on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Its weights: measuring, ids in and out, plain text.
    #[default]
    Weights,
    /// Conversations: it needs a tokenizer and a chat template.
    Chat,
}

/// The Dollop file for a foreign model: an earlier conversion if the source is unchanged, else a new one in `folder`.
/// A damaged one (a disk was full, a machine crashed) is made again. Older conversions of the same source are removed once
/// the new one is there. Where another process converts the same model into this folder, its result is waited for.
///
/// # Errors
/// As [`super::convert`]; `Unsupported` or `Template` where the model does not serve the purpose.
#[doc(hidden)]
pub fn cached(
    source: &Path,
    folder: &Path,
    options: &ConvertOptions,
    purpose: Purpose,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf> {
    let path = absolute(source).map_err(|e| Error::io(source, e))?;
    let opened = Source::open(&path)?;
    // The place of the source names the family of its conversions; its state and the options name the one.
    let place = format!("{:08x}", crc32fast::hash(path.as_os_str().as_encoded_bytes()));
    let mut state = crc32fast::Hasher::new();
    state.update(&state_of(&opened)?);
    let (dense, max) = (options.level_dense, options.max_level);
    state.update(
        format!("{} {dense} {max} {:?} {:?}", dollop::VERSION_PLAIN, options.group, options.level_embed)
            .as_bytes(),
    );
    if let Some(size) = options.size {
        state.update(format!("{size:?}").as_bytes());
    }
    // Not the usual ones, so that conversions from before they were a choice are found.
    if options.params != GroupParams::Wide {
        state.update(format!("{:?}", options.params).as_bytes());
    }
    // Conversions from before a folder's advice on sampling was kept lack it.
    let advises = opened.metadata().iter().any(|(key, _)| key.starts_with("general.sampling."));
    if advises && opened.files().any(|f| f.file_name().is_some_and(|n| n == "generation_config.json")) {
        state.update(b"sampling");
    }
    // Those from before codes of tables were kept have others.
    let is_table =
        |name| opened.dtype(name).and_then(quant::kept).is_some_and(|params| params.table().is_some());
    if opened.names().any(is_table) {
        state.update(b"tables");
    }
    if let Some(calibration) = &options.calibration {
        state.update(&calibration.fingerprint().to_le_bytes());
        if calibration.rows().is_some() {
            state.update(format!("fed back {}", options.sweeps).as_bytes());
            if options.rotate {
                state.update(b"rotated");
            }
        }
    }
    let name = model_name(&path).unwrap_or_default();
    let family = format!("{}-{place}-", name.to_string_lossy());
    let target = folder.join(format!("{family}{:08x}.gguf", state.finalize()));
    if is_whole(&target) {
        log::debug!("{}: converted before, into {}", source.display(), target.display());
        return Ok(target);
    }
    if purpose == Purpose::Chat {
        check::can_chat(&opened).map_err(|e| e.at(source))?;
    }
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let total = opened.bytes();
    let _turn = Turn::take(&target.with_extension("lock"), &mut || {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        progress(Progress { stage: "waiting for another conversion of this model", done: 0, total });
        std::thread::sleep(PATIENCE);
        Ok(())
    })?;
    if is_whole(&target) {
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

/// Names, lengths and times of a source's files: equal where none was changed.
pub(super) fn state_of(source: &Source) -> Result<Vec<u8>> {
    let mut state = Vec::new();
    for file in source.files() {
        let meta = fs::metadata(file).map_err(|e| Error::io(file, e))?;
        let changed =
            meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
        state.extend_from_slice(file.as_os_str().as_encoded_bytes());
        state.extend_from_slice(&meta.len().to_le_bytes());
        state.extend_from_slice(&changed.to_le_bytes());
    }
    Ok(state)
}

/// Whether a conversion is there as it was written: its tables are read, which a file that was cut does not survive.
fn is_whole(target: &Path) -> bool {
    if !target.exists() {
        return false;
    }
    match store::map(target).and_then(NestedFile::new) {
        Ok(_) => true,
        Err(e) => {
            log::warn!("{}: made again: {e}", target.display());
            false
        }
    }
}
