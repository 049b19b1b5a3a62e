//! Opens and closes models, and reports the progress of conversions.

use crate::arguments;
use crate::arguments::Struct;
use crate::boundary::{Failure, Result, c_string, run};
use crate::handles::{self, dollop_engine};
use crate::options::{Opening, dollop_engine_options, dollop_progress};
use crate::outputs::Out;
use crate::status::dollop_status::{self, *};
use runtime::{Engine, Progress};
use std::ffi::c_char;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Opens a model: a Dollop file. With `cache_folder` also a GGUF file (any part of a split one) or a Hugging Face folder,
/// which is converted once. `options` may be NULL for the defaults. Writes a new handle to `*engine`; close it with
/// `dollop_engine_free`. Blocks until the model is open, for minutes if it converts; call it on a thread that may block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_open(
    path: *const c_char,
    options: *const dollop_engine_options,
    engine: *mut *mut dollop_engine,
) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`, for a path, options with their pointers, and a handle's destination.
        let (path, opening, engine) = unsafe {
            (
                arguments::path("path", path)?,
                dollop_engine_options::read_or_default(options)?.opening()?,
                Out::new("engine", engine)?,
            )
        };
        let open = |progress: OnProgress| Engine::open_with(&path, &opening.engine, progress);
        engine.set(handles::open(with_progress(&opening, open)?)?);
        Ok(())
    })
}

/// Closes the handle. NULL does nothing. Sessions, chats and plans of the engine stay valid, and the model stays in
/// memory until they are freed too. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_free(engine: *mut dollop_engine) -> dollop_status {
    run(|| handles::close(engine).map(drop))
}

/// A callback for the progress of a conversion. Returns whether to continue.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Runs `work`, which may first convert a model, and reports its progress to the caller's callback.
pub(crate) fn with_progress<T>(
    opening: &Opening,
    work: impl FnOnce(OnProgress) -> runtime::Result<T>,
) -> Result<T> {
    let mut panicked = false;
    let done = work(&mut |progress| {
        let answer = opening.on_progress.map_or(Some(0), |f| report(f, opening, progress));
        panicked |= answer.is_none();
        if answer == Some(0) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if panicked {
        return Err(Failure::new(DOLLOP_CALLBACK_PANIC, "the progress callback panicked"));
    }
    Ok(done?)
}

type Callback = unsafe extern "C-unwind" fn(*const dollop_progress, *mut std::ffi::c_void) -> i32;

/// The callback's return value; `None` if it panicked.
fn report(callback: Callback, opening: &Opening, progress: Progress) -> Option<i32> {
    let stage = c_string(progress.stage);
    let progress = dollop_progress { stage: stage.as_ptr(), done: progress.done, total: progress.total };
    // SAFETY: by the contract of `lib.rs` a function of this type. Its argument is valid until it returns. A panic
    // of a callback in Rust ends here.
    catch_unwind(AssertUnwindSafe(|| unsafe { callback(&progress, opening.user_data) })).ok()
}
