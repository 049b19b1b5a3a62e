//! Options for opening a model, from Kotlin: numbers in one array, and two folders.

use super::{optional_text, unsigned};
use crate::boundary::{Failure, Result};
use crate::options::{Opening, dollop_engine_options};
use jni::JNIEnv;
use jni::objects::{JIntArray, JString};
use jni::sys::{jfloat, jlong};
use std::ffi::CString;
use std::ptr::null;

/// The numbers are those of `EngineOptions.numbers` in Kotlin, in the same order.
pub(super) fn opening(
    env: &mut JNIEnv,
    numbers: &JIntArray,
    quality: jfloat,
    memory: jlong,
    folders: [&JString; 2],
) -> Result<Opening> {
    let mut n = [0; 10];
    env.get_int_array_region(numbers, 0, &mut n)?;
    let given = |i: usize| u32::try_from(n[i]).map_err(|_| Failure::invalid(format!("option {i}: {}", n[i])));
    let mut folder = |i: usize| -> Result<Option<CString>> {
        let path = optional_text(env, folders[i])?;
        path.map(|p| CString::new(p).map_err(|_| Failure::invalid("a path contains a NUL"))).transpose()
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
        always_stream: given(9)?,
        quality,
        memory_bytes: unsigned("the memory", memory)?,
        cache_folder: pointer(&cache),
        pipelines_folder: pointer(&pipelines),
        ..Default::default()
    };
    // SAFETY: the folders are NULL or texts of this function.
    unsafe { options.opening() }
}
