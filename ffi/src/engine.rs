//! Opening a model, and what an open one says.

use crate::arguments;
use crate::arguments::Struct;
use crate::boundary::{Failure, Result, c_string, run};
use crate::handles::{self, dollop_engine};
use crate::options::{Opening, dollop_engine_options, dollop_progress};
use crate::outputs::Out;
use crate::status::dollop_status::{self, *};
use runtime::convert::{ConvertOptions, Purpose, cached};
use runtime::inspect::{Kind, kind};
use runtime::{CancelToken, Engine, Progress};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Opens a model: a Dollop file, or with `cache_folder` a GGUF file (any part of a split one) or a Hugging Face folder,
/// which is converted once. `options` may be NULL for the defaults. Writes a handle to `*engine`, which
/// `dollop_engine_free` closes. Blocks until the model is open, minutes for a conversion; call it from a thread that may.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_open(
    path: *const c_char,
    options: *const dollop_engine_options,
    engine: *mut *mut dollop_engine,
) -> dollop_status {
    run(|| {
        // SAFETY: the contract of pointers in `lib.rs`, for a path, options with theirs, and a place for a handle.
        let (path, opening, engine) = unsafe {
            (
                arguments::path("path", path)?,
                dollop_engine_options::read_or_default(options)?.opening()?,
                Out::new("engine", engine)?,
            )
        };
        let file = dollop_file(&path, &opening)?;
        engine.set(handles::open(Engine::open(&file, &opening.engine)?)?);
        Ok(())
    })
}

/// Closes the handle; NULL is fine. Sessions, chats and plans of the engine stay as they are, and the model stays in memory
/// until they are freed too. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_free(engine: *mut dollop_engine) -> dollop_status {
    run(|| handles::close(engine).map(drop))
}

/// The Dollop file for a path: itself, or a conversion in the cache folder, of which the caller's callback hears.
pub(crate) fn dollop_file(path: &Path, opening: &Opening) -> Result<PathBuf> {
    let mut panicked = false;
    let file = dollop_file_with(path, opening, &mut |progress| {
        let answer = opening.on_progress.map_or(Some(0), |f| report(f, opening, progress));
        panicked |= answer.is_none();
        answer == Some(0)
    });
    if panicked {
        return Err(Failure::new(DOLLOP_CALLBACK_PANIC, "the progress callback panicked"));
    }
    file
}

/// The same; `go_on` hears of the progress until it says no.
pub(crate) fn dollop_file_with(
    path: &Path,
    opening: &Opening,
    go_on: &mut dyn FnMut(Progress) -> bool,
) -> Result<PathBuf> {
    if path.is_file() && kind(path)? == Kind::Dollop {
        return Ok(path.to_path_buf());
    }
    let Some(folder) = &opening.cache else {
        // What the system says of a path that is not there is the better answer.
        let meta = std::fs::metadata(path).map_err(|e| runtime::Error::io(path, e))?;
        let what = if meta.is_dir() { "a folder" } else { "a foreign model" };
        let text =
            format!("{}: this is {what}, and no cache_folder was named to convert it into", path.display());
        return Err(Failure::new(DOLLOP_UNSUPPORTED, text));
    };
    let (options, cancel) = (ConvertOptions::default(), CancelToken::new());
    Ok(cached(path, folder, &options, Purpose::Weights, &cancel, &mut |progress| {
        if !cancel.is_cancelled() && !go_on(progress) {
            cancel.cancel();
        }
    })?)
}

type Callback = unsafe extern "C-unwind" fn(*const dollop_progress, *mut std::ffi::c_void) -> i32;

/// What the callback answers; `None` where it panics.
fn report(callback: Callback, opening: &Opening, progress: Progress) -> Option<i32> {
    let stage = c_string(progress.stage);
    let progress = dollop_progress { stage: stage.as_ptr(), done: progress.done, total: progress.total };
    // SAFETY: by the contract of `lib.rs` a function of this type, which gets a value that lives until it returns. What a
    // callback in Rust may unwind with ends here.
    catch_unwind(AssertUnwindSafe(|| unsafe { callback(&progress, opening.user_data) })).ok()
}
