//! Models in open files, for systems that pass descriptors instead of paths.

use crate::arguments::Struct;
use crate::boundary::{Failure, Result, run};
use crate::handles::{self, dollop_engine, dollop_plan};
use crate::options::dollop_engine_options;
use crate::outputs::Out;
use crate::status::dollop_status;
use runtime::Engine;
use std::ffi::c_int;
use std::fs::File;
use std::sync::Arc;

/// Opens a Dollop file that is part of an open file: `length` bytes from `offset`, a multiple of 64; a `length` of
/// 0 means up to the end. For Android's assets and documents, and for sandboxes. The descriptor is duplicated; the
/// caller may close its own at any time. Other model formats must be converted first. `DOLLOP_UNSUPPORTED` on
/// Windows, which has no descriptors. Otherwise as `dollop_engine_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_open_file(
    descriptor: c_int,
    offset: u64,
    length: u64,
    options: *const dollop_engine_options,
    engine: *mut *mut dollop_engine,
) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`, for options with their pointers and a handle's destination.
        let (opening, engine) = unsafe {
            (dollop_engine_options::read_or_default(options)?.opening()?, Out::new("engine", engine)?)
        };
        let (file, length) = part(descriptor, offset, length)?;
        engine.set(handles::open(Engine::open_file(file, offset, length, &opening.engine)?)?);
        Ok(())
    })
}

/// Plans the memory for `dollop_engine_open_file` with the same arguments. Loads nothing. Otherwise as
/// `dollop_plan_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_new_file(
    descriptor: c_int,
    offset: u64,
    length: u64,
    options: *const dollop_engine_options,
    plan: *mut *mut dollop_plan,
) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`, for options with their pointers and a handle's destination.
        let (opening, plan) =
            unsafe { (dollop_engine_options::read_or_default(options)?.opening()?, Out::new("plan", plan)?) };
        let (file, length) = part(descriptor, offset, length)?;
        plan.set(handles::open(Arc::new(Engine::plan_file(file, offset, length, &opening.engine)?))?);
        Ok(())
    })
}

/// A duplicate of a descriptor, and the length of the part to read.
pub(crate) fn part(descriptor: c_int, offset: u64, length: u64) -> Result<(File, u64)> {
    let file = duplicate(descriptor)?;
    if length != 0 {
        return Ok((file, length));
    }
    let all = file.metadata().map_err(|e| runtime::Error::io("the descriptor", e))?.len();
    match all.checked_sub(offset) {
        Some(rest) if rest > 0 => Ok((file, rest)),
        _ => Err(Failure::invalid(format!("offset {offset}: the file has {all} bytes"))),
    }
}

#[cfg(unix)]
fn duplicate(descriptor: c_int) -> Result<File> {
    use std::os::fd::BorrowedFd;
    if descriptor < 0 {
        return Err(Failure::invalid(format!("{descriptor} is not a file descriptor")));
    }
    // SAFETY: not -1. The caller keeps it open during the call. If it is not open, the system returns an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let own = borrowed.try_clone_to_owned().map_err(|e| runtime::Error::io("the descriptor", e))?;
    Ok(File::from(own))
}

#[cfg(not(unix))]
fn duplicate(_: c_int) -> Result<File> {
    use crate::status::dollop_status::DOLLOP_UNSUPPORTED;
    Err(Failure::new(DOLLOP_UNSUPPORTED, "this system has no file descriptors: open the file by its path"))
}
