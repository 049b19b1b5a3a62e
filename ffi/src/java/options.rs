//! What a model is opened with, as Kotlin hands it in: numbers in one array, two folders, and a path or a descriptor.

use super::{optional_text, unsigned};
use crate::boundary::{Failure, Result};
use crate::options::{Opening, dollop_engine_options};
use jni::JNIEnv;
use jni::objects::{JIntArray, JString};
use jni::sys::{jfloat, jint, jlong};
use std::ffi::CString;
use std::fs::File;
use std::ptr::null;

/// The numbers are those of `EngineOptions.numbers` in Kotlin, in its order.
pub(super) fn opening(
    env: &mut JNIEnv,
    numbers: &JIntArray,
    quality: jfloat,
    memory: jlong,
    folders: [&JString; 2],
) -> Result<Opening> {
    let mut n = [0; 9];
    env.get_int_array_region(numbers, 0, &mut n)?;
    let given =
        |i: usize| u32::try_from(n[i]).map_err(|_| Failure::invalid(format!("option {i}: {}", n[i])));
    let mut folder = |i: usize| -> Result<Option<CString>> {
        let path = optional_text(env, folders[i])?;
        path.map(|p| CString::new(p).map_err(|_| Failure::invalid("a path with a NUL"))).transpose()
    };
    let (cache, pipelines) = (folder(0)?, folder(1)?);
    let pointer = |path: &Option<CString>| path.as_ref().map_or(null(), |p| p.as_ptr());
    let options = dollop_engine_options {
        backend: given(0)?,
        gpu_index: n[1],
        threads: given(2)?,
        context: given(3)?,
        chunk: given(4)?,
        precision: given(5)?,
        level: given(6)?,
        lanes: given(7)?,
        lookahead: given(8)?,
        quality,
        memory_bytes: unsigned("the memory", memory)?,
        cache_folder: pointer(&cache),
        pipelines_folder: pointer(&pipelines),
        ..Default::default()
    };
    // SAFETY: the folders are NULL or texts of this function.
    unsafe { options.opening() }
}

/// The part of an open file that a descriptor stands for.
pub(super) struct Part {
    pub(super) file: File,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Duplicates the descriptor: Kotlin closes its own whenever it likes. A length of 0 reaches to the end of the file.
#[cfg(unix)]
pub(super) fn part(descriptor: jint, offset: jlong, length: jlong) -> Result<Part> {
    use std::os::fd::BorrowedFd;
    let (offset, length) = (unsigned("the offset", offset)?, unsigned("the length", length)?);
    if descriptor < 0 {
        return Err(Failure::invalid(format!("descriptor {descriptor}: it is none")));
    }
    let failed = |e| Failure::from(runtime::Error::io("open file", e));
    // SAFETY: a number that is not -1. Where it is no descriptor of this process, the system says so and nothing else happens:
    // the duplicate alone is read.
    let file: File = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().map_err(failed)?.into();
    let len = match length {
        0 => file.metadata().map_err(failed)?.len().saturating_sub(offset),
        length => length,
    };
    Ok(Part { file, offset, len })
}

#[cfg(not(unix))]
pub(super) fn part(_: jint, _: jlong, _: jlong) -> Result<Part> {
    let status = crate::status::dollop_status::DOLLOP_UNSUPPORTED;
    Err(Failure::new(status, "this system has no descriptors: open the model by its path"))
}
