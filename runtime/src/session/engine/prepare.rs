//! Finds the Dollop file for a path: the file itself, or the conversion of a foreign model in the cache
//! folder. The library, the command line and the bindings all use this.

use super::Engine;
use crate::convert::{ConvertOptions, cached};
use crate::error::{Error, Result};
use crate::inspect::{Kind, kind};
use crate::session::options::EngineOptions;
use crate::telemetry::{CancelToken, Progress};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Receives the progress of a long call, and may end it.
pub(super) type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

impl Engine {
    /// Returns the Dollop file that [`Engine::open`] would open for a path, without opening it. That is the
    /// file itself, or the conversion of a foreign model. If the cache folder has none, this converts the
    /// model. Progress goes to `progress` on this thread, which may end it with [`ControlFlow::Break`].
    ///
    /// # Errors
    /// `Io`, `Malformed`; `Unsupported` for a foreign model if the options name no cache folder, or if it
    /// cannot be converted or does not suit the options' purpose; `Template` for a chat model whose template
    /// does not parse; `Cancelled`.
    pub fn prepare(
        path: impl AsRef<Path>,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        prepare(path.as_ref(), options, progress)
    }
}

/// [`Engine::prepare`].
pub(super) fn prepare(path: &Path, options: &EngineOptions, progress: OnProgress) -> Result<PathBuf> {
    // For a missing file, the system's own message is the clearest.
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_file() && kind(path)? == Kind::Dollop {
        return Ok(path.to_path_buf());
    }
    let Some(folder) = &options.cache else {
        let what = if meta.is_dir() { "a folder" } else { "a foreign model" };
        let what = format!("this is {what}, and no cache folder was named to convert it into");
        return Err(Error::unsupported(what).at(path));
    };
    let cancel = CancelToken::new();
    cached(path, folder, &ConvertOptions::default(), options.purpose, &cancel, &mut |p| {
        if !cancel.is_cancelled() && progress(p).is_break() {
            cancel.cancel();
        }
    })
}
