//! From what a path names to a Dollop file: the file itself, or a conversion of a foreign model into the cache folder that
//! the options name. The one way there for the library, the command line and the bindings.

use super::Engine;
use crate::convert::{ConvertOptions, cached};
use crate::error::{Error, Result};
use crate::inspect::{Kind, kind};
use crate::session::options::EngineOptions;
use crate::telemetry::{CancelToken, Progress};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Hears how far a long call has come, and may end it.
pub(super) type Hear<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

impl Engine {
    /// The Dollop file that [`Engine::open`] opens for a path, without opening it: the file itself, or the conversion of a
    /// foreign model, made now if the cache folder has none. `progress` hears of a conversion, on this thread, and ends it with
    /// [`ControlFlow::Break`].
    ///
    /// # Errors
    /// `Io`, `Malformed`; `Unsupported` for a foreign model where the options name no cache folder, and for one that cannot
    /// be converted or does not serve the options' purpose; `Template` for a chat whose template does not parse; `Cancelled`.
    pub fn prepare(
        path: impl AsRef<Path>,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<PathBuf> {
        prepare(path.as_ref(), options, progress)
    }
}

/// [`Engine::prepare`].
pub(super) fn prepare(path: &Path, options: &EngineOptions, progress: Hear) -> Result<PathBuf> {
    // What the system says of a path that is not there is the best answer.
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
