//! Engines: opening and planning, info, memory and tokenizer.

use super::listener::Listener;
use super::options::opening;
use super::{enter, handle, ids, java, java_ids, number, path, text, unsigned};
use crate::boundary::{Failure, Result};
use crate::engine::OnProgress;
use crate::file::part;
use crate::handles::{self, dollop_engine};
use jni::JNIEnv;
use jni::objects::{JClass, JIntArray, JObject, JString};
use jni::sys::{jboolean, jint, jintArray, jlong, jstring};
use runtime::{Engine, Progress};
use std::ops::ControlFlow;
use std::path::Path;
use std::ptr::null_mut;

/// Opens or plans by a path. A model of another format is converted first, with progress to the listener.
fn with_path<T>(
    env: &mut JNIEnv,
    path: &JString,
    listener: &JObject,
    work: impl FnOnce(&Path, OnProgress) -> runtime::Result<T>,
) -> Result<T> {
    let path = self::path(env, path)?;
    let mut listener = Listener::new(env, listener)?;
    let mut on_progress = |p: Progress| {
        let numbers = [0, 0, p.done as jlong, p.total as jlong];
        match listener.as_mut().is_none_or(|l| l.receive(env, numbers, p.stage)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    let done = work(&path, &mut on_progress)?;
    // A conversion may finish before the listener answers. The opened model is then closed.
    if listener.is_some_and(|listener| listener.stopped()) {
        return Err(runtime::Error::Cancelled.into());
    }
    Ok(done)
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineOpen<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    path: JString<'a>,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jlong {
    enter(&mut env, 0, |env| {
        let opening = opening(env, &options)?;
        let open = |path: &Path, progress: OnProgress| Engine::open_with(path, &opening.engine, progress);
        Ok(number(handles::open::<dollop_engine>(with_path(env, &path, &listener, open)?)?))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineOpenFile<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    descriptor: jint,
    offset: jlong,
    length: jlong,
    options: JString<'a>,
) -> jlong {
    enter(&mut env, 0, |env| {
        let opening = opening(env, &options)?;
        let offset = unsigned("the offset", offset)?;
        let (file, length) = part(descriptor, offset, unsigned("the length", length)?)?;
        let engine = Engine::open_file(file, offset, length, &opening.engine)?;
        Ok(number(handles::open::<dollop_engine>(engine)?))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_planJson<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    path: JString<'a>,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let opening = opening(env, &options)?;
        let plan = |path: &Path, progress: OnProgress| Engine::plan_with(path, &opening.engine, progress);
        let plan = with_path(env, &path, &listener, plan)?;
        java(env, &crate::plan::json(&plan)?)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_planFileJson<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    descriptor: jint,
    offset: jlong,
    length: jlong,
    options: JString<'a>,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let opening = opening(env, &options)?;
        let offset = unsigned("the offset", offset)?;
        let (file, length) = part(descriptor, offset, unsigned("the length", length)?)?;
        let plan = Engine::plan_file(file, offset, length, &opening.engine)?;
        java(env, &crate::plan::json(&plan)?)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineJson<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    what: jint,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let json = match what {
            0 => crate::info::json(&engine)?,
            1 => crate::stats::json(&engine),
            3 => super::generate::sampling_json(engine.sampling())?,
            _ => crate::plan::json(&engine.memory_plan())?,
        };
        java(env, &json)
    })
}

/// Returns the number of bytes freed to the system.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineSetMemory<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    bytes: jlong,
) -> jlong {
    enter(&mut env, 0, |_| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        Ok(engine.set_memory(unsigned("the memory", bytes)?)? as jlong)
    })
}

/// The level is the ordinal of `TrimLevel` in Kotlin. Returns the number of bytes freed to the system.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineTrim<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    level: jint,
) -> jlong {
    enter(&mut env, 0, |_| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let level = crate::memory::level(unsigned("the level", level.into())? as u32)?;
        Ok(engine.trim(level)? as jlong)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineTokenize<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    from: JString<'a>,
    add_special: jboolean,
) -> jintArray {
    enter(&mut env, null_mut(), |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let text = text(env, &from)?;
        let ids = engine.tokenizer()?.encode(&text, add_special != 0)?;
        java_ids(env, &ids)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineDetokenize<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    from: JIntArray<'a>,
    skip_special: jboolean,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let ids = ids(env, &from)?;
        let vocab = engine.info().vocab;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Failure::invalid(format!("token {id}: the vocabulary has {vocab}")));
        }
        let text = engine.tokenizer()?.decode(&ids, skip_special != 0);
        java(env, &text)
    })
}

/// Renders messages, given as a JSON array, with the model's chat template.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineRender<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    messages: JString<'a>,
    add_generation_prompt: jboolean,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let messages = super::chat::messages(env, &messages)?;
        java(env, &crate::chat::rendered(&engine, &messages, add_generation_prompt != 0)?)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineClose<'a>(mut env: JNIEnv<'a>, _: JClass<'a>, engine: jlong) {
    enter(&mut env, (), |_| handles::close::<dollop_engine>(handle(engine)).map(drop));
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_devicesJson<'a>(mut env: JNIEnv<'a>, _: JClass<'a>) -> jstring {
    enter(&mut env, null_mut(), |env| java(env, &crate::devices::json()?))
}
