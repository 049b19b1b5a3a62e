//! A cache of conversions: a folder of Dollop files, keyed by source and options.

use super::name::absolute;
use super::partial::Turn;
use super::source::Source;
use super::{ConvertOptions, check, convert_opened, model_name};
use crate::error::{Error, Result};
use crate::format::dollop;
use crate::model::file::NestedFile;
use crate::quant::{self, GroupParams};
use crate::store;
use crate::telemetry::{CancelToken, Progress};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Time between two checks whether another process has finished the same conversion.
const PATIENCE: Duration = Duration::from_millis(200);

/// What the converted model is for. A model that cannot serve this purpose is refused before an hour is spent
/// on its conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Weights only: measuring, token ids in and out, plain text.
    #[default]
    Weights,
    /// Chat: the model needs a tokenizer and a chat template.
    Chat,
}

/// Returns the Dollop file for a foreign model: an earlier conversion in `folder` if the source is unchanged,
/// else a new one.
///
/// A damaged earlier conversion (full disk, machine crash) is converted again. Once the new file is complete,
/// older conversions of the same source are removed. If another process is converting the same model into
/// `folder`, this call waits for its result.
///
/// # Errors
/// As [`super::convert`]; `Unsupported` or `Template` if the model does not serve `purpose`.
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
    // The source's path identifies the family of its conversions, its state and the options one of them.
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
    // The default adds nothing to the key, so that conversions older than this option are still found.
    if options.params != GroupParams::Wide {
        state.update(format!("{:?}", options.params).as_bytes());
    }
    // Older conversions did not store a folder's sampling advice.
    let advises = opened.metadata().iter().any(|(key, _)| key.starts_with("general.sampling."));
    if advises && opened.files().any(|f| f.file_name().is_some_and(|n| n == "generation_config.json")) {
        state.update(b"sampling");
    }
    // Older conversions did not keep table codes.
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
    convert_opened(&opened, &target, options, cancel, progress)?;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let stale =
            entry.file_name().to_str().is_some_and(|n| n.starts_with(&family) && n.ends_with(".gguf"));
        if stale && entry.path() != target {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(target)
}

/// Names, lengths and modification times of a source's files: equal if no file was changed.
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

/// Whether a conversion exists and is complete. Opening it reads its tables, which fails for a truncated
/// file.
fn is_whole(target: &Path) -> bool {
    if !target.exists() {
        return false;
    }
    match store::map(target).and_then(NestedFile::new) {
        Ok(_) => true,
        Err(e) => {
            log::warn!("{}: damaged, converting again: {e}", target.display());
            false
        }
    }
}
