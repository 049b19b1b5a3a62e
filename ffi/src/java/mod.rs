//! Entry points of the Kotlin library, which `dev.dollop.Native` (android/core) declares. They use the same handles as C.
//!
//! A failure becomes a `DollopException` with the status and the text. An exception of a listener stops the call, which
//! throws it again. Until the call returns, the virtual machine is not called. The files here are by subject; this one
//! converts texts, numbers, handles and failures.

mod chat;
mod engine;
mod generate;
mod listener;
mod log;
mod options;
mod session;

use crate::boundary::{Failure, Result, guarded};
use crate::handles;
use crate::status::dollop_status::*;
use jni::JNIEnv;
use jni::errors::Error as JniError;
use jni::objects::{JClass, JIntArray, JString, JThrowable, JValue};
use jni::sys::{jfloatArray, jint, jintArray, jlong, jlongArray, jstring};
use std::path::PathBuf;
use std::ptr::{null_mut, without_provenance_mut};

impl From<JniError> for Failure {
    fn from(error: JniError) -> Failure {
        Failure::new(DOLLOP_OTHER, format!("the virtual machine: {error}"))
    }
}

/// Runs the body of a native method. On failure throws it, unless an exception is pending, and returns `none`.
fn enter<T>(env: &mut JNIEnv, none: T, body: impl FnOnce(&mut JNIEnv) -> Result<T>) -> T {
    let result = guarded(|| body(&mut *env));
    result.unwrap_or_else(|failure| {
        // If even this fails, the virtual machine has thrown its own exception.
        let _ = throw(env, &failure);
        none
    })
}

fn throw(env: &mut JNIEnv, failure: &Failure) -> jni::errors::Result<()> {
    if env.exception_check()? {
        return Ok(());
    }
    let text = env.new_string(&failure.text)?;
    let arguments = [JValue::Int(failure.status as i32), JValue::Object(&text)];
    let exception = env.new_object("dev/dollop/DollopException", "(ILjava/lang/String;)V", &arguments)?;
    env.throw(JThrowable::from(exception))
}

fn text(env: &mut JNIEnv, from: &JString) -> Result<String> {
    if from.is_null() {
        return Err(Failure::new(DOLLOP_NULL, "a text is null"));
    }
    Ok(env.get_string(from)?.into())
}

fn optional_text(env: &mut JNIEnv, from: &JString) -> Result<Option<String>> {
    if from.is_null() { Ok(None) } else { text(env, from).map(Some) }
}

fn path(env: &mut JNIEnv, from: &JString) -> Result<PathBuf> {
    text(env, from).map(PathBuf::from)
}

fn java(env: &mut JNIEnv, text: &str) -> Result<jstring> {
    Ok(env.new_string(text)?.into_raw())
}

fn java_longs(env: &mut JNIEnv, numbers: &[jlong]) -> Result<jlongArray> {
    let array = env.new_long_array(numbers.len() as jint)?;
    env.set_long_array_region(&array, 0, numbers)?;
    Ok(array.into_raw())
}

fn java_floats(env: &mut JNIEnv, numbers: &[f32]) -> Result<jfloatArray> {
    let array = env.new_float_array(numbers.len() as jint)?;
    env.set_float_array_region(&array, 0, numbers)?;
    Ok(array.into_raw())
}

/// Token ids. Vocabularies are far smaller than the range of a signed number.
fn java_ids(env: &mut JNIEnv, ids: &[u32]) -> Result<jintArray> {
    let ids: Vec<jint> = ids.iter().map(|&id| jint::try_from(id).unwrap_or(jint::MAX)).collect();
    let array = env.new_int_array(ids.len() as jint)?;
    env.set_int_array_region(&array, 0, &ids)?;
    Ok(array.into_raw())
}

fn ids(env: &mut JNIEnv, from: &JIntArray) -> Result<Vec<u32>> {
    if from.is_null() {
        return Err(Failure::new(DOLLOP_NULL, "ids is null"));
    }
    let mut ids = vec![0; env.get_array_length(from)? as usize];
    env.get_int_array_region(from, 0, &mut ids)?;
    ids.into_iter()
        .map(|id| u32::try_from(id).map_err(|_| Failure::invalid(format!("token {id} is negative"))))
        .collect()
}

/// A number that must not be negative.
fn unsigned(name: &str, number: jlong) -> Result<u64> {
    u64::try_from(number).map_err(|_| Failure::invalid(format!("{name}: {number} is negative")))
}

/// A handle, which Kotlin holds as a number.
fn handle<H>(number: jlong) -> *mut H {
    without_provenance_mut(usize::try_from(number).unwrap_or_default())
}

fn number<H>(handle: *mut H) -> jlong {
    handle.addr() as jlong
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_openHandles<'a>(_: JNIEnv<'a>, _: JClass<'a>) -> jlong {
    handles::dollop_open_handles() as jlong
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_version<'a>(mut env: JNIEnv<'a>, _: JClass<'a>) -> jstring {
    enter(&mut env, null_mut(), |env| java(env, env!("CARGO_PKG_VERSION")))
}
