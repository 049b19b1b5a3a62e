//! Entry points of the Kotlin library: what `dev.dollop.Native` declares (android/core), over the same handles.
//!
//! A failure becomes a `DollopException` with the status and the text. What a listener throws stops the call and is thrown
//! again by it: after that nothing is asked of the virtual machine until the call returns.

use crate::boundary::{Failure, Result, guarded};
use crate::engine::Hear;
use crate::generate::outcome_of;
use crate::handles::{self, Exclusive, dollop_chat, dollop_engine};
use crate::options::{Opening, dollop_engine_options};
use crate::status::dollop_status::*;
use jni::JNIEnv;
use jni::errors::Error as JniError;
use jni::objects::{JClass, JDoubleArray, JIntArray, JObject, JObjectArray, JString, JThrowable, JValue};
use jni::signature::{Primitive, ReturnType};
use jni::sys::{jdoubleArray, jfloat, jint, jlong, jstring};
use runtime::sampler::Sampling;
use runtime::template::DateTime;
use runtime::{CancelToken, Chat, Engine, Event, GenerateOptions, Overflow, Progress, SessionOptions};
use std::ffi::CString;
use std::ops::ControlFlow;
use std::ptr::{null, null_mut, without_provenance_mut};
use std::sync::Arc;

impl From<JniError> for Failure {
    fn from(error: JniError) -> Failure {
        Failure::new(DOLLOP_OTHER, format!("the virtual machine: {error}"))
    }
}

/// Runs the body of a native method; a failure is thrown, unless something else is already, and `none` returned.
fn enter<T>(env: &mut JNIEnv, none: T, body: impl FnOnce(&mut JNIEnv) -> Result<T>) -> T {
    let result = guarded(|| body(&mut *env));
    result.unwrap_or_else(|failure| {
        // Where even this fails, the virtual machine has thrown something of its own.
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

fn java(env: &mut JNIEnv, text: &str) -> Result<jstring> {
    Ok(env.new_string(text)?.into_raw())
}

/// A handle that Kotlin holds as a number.
fn handle<H>(number: jlong) -> *mut H {
    without_provenance_mut(usize::try_from(number).unwrap_or_default())
}

fn number<H>(handle: *mut H) -> jlong {
    handle.addr() as jlong
}

/// A listener's method, looked up once a call.
struct Listener<'a> {
    object: &'a JObject<'a>,
    method: jni::objects::JMethodID,
    /// It has said no, or thrown.
    stopped: bool,
}

impl<'a> Listener<'a> {
    fn new(env: &mut JNIEnv, object: &'a JObject<'a>, signature: &str) -> Result<Option<Listener<'a>>> {
        if object.is_null() {
            return Ok(None);
        }
        let class = env.get_object_class(object)?;
        let method = env.get_method_id(class, "hear", signature)?;
        Ok(Some(Listener { object, method, stopped: false }))
    }

    /// Calls it with numbers and a text; whether to go on.
    fn hear(&mut self, env: &mut JNIEnv, numbers: [jlong; 4], text: &str) -> bool {
        if self.stopped {
            return false;
        }
        let answer = env.with_local_frame(4, |env| {
            let text = env.new_string(text)?;
            let n = numbers.map(|n| JValue::Long(n).as_jni());
            let arguments = [n[0], n[1], n[2], n[3], JValue::Object(&text).as_jni()];
            let returns = ReturnType::Primitive(Primitive::Boolean);
            // SAFETY: the method was found in the object's class by its signature, `(JJJJLjava/lang/String;)Z`, which these
            // arguments and this type are of.
            unsafe { env.call_method_unchecked(self.object, self.method, returns, &arguments) }?.z()
        });
        self.stopped = !answer.unwrap_or(false);
        !self.stopped
    }
}

const HEAR: &str = "(JJJJLjava/lang/String;)Z";

/// The numbers are those of `EngineOptions.numbers` in Kotlin, in its order.
fn opening(
    env: &mut JNIEnv,
    numbers: &JIntArray,
    quality: jfloat,
    memory: jlong,
    folders: [&JString; 2],
) -> Result<Opening> {
    let mut n = [0; 9];
    env.get_int_array_region(numbers, 0, &mut n)?;
    let unsigned =
        |i: usize| u32::try_from(n[i]).map_err(|_| Failure::invalid(format!("option {i}: {}", n[i])));
    let mut folder = |i: usize| -> Result<Option<CString>> {
        let path = optional_text(env, folders[i])?;
        path.map(|p| CString::new(p).map_err(|_| Failure::invalid("a path with a NUL"))).transpose()
    };
    let (cache, pipelines) = (folder(0)?, folder(1)?);
    let pointer = |path: &Option<CString>| path.as_ref().map_or(null(), |p| p.as_ptr());
    let options = dollop_engine_options {
        backend: unsigned(0)?,
        gpu_index: n[1],
        threads: unsigned(2)?,
        context: unsigned(3)?,
        chunk: unsigned(4)?,
        precision: unsigned(5)?,
        level: unsigned(6)?,
        lanes: unsigned(7)?,
        lookahead: unsigned(8)?,
        quality,
        memory_bytes: u64::try_from(memory)
            .map_err(|_| Failure::invalid(format!("a memory of {memory} bytes")))?,
        cache_folder: pointer(&cache),
        pipelines_folder: pointer(&pipelines),
        ..Default::default()
    };
    // SAFETY: the folders are NULL or texts of this function.
    unsafe { options.opening() }
}

/// Opens or plans: what both do before.
fn with_path<T>(
    env: &mut JNIEnv,
    path: &JString,
    listener: &JObject,
    work: impl FnOnce(&str, Hear) -> runtime::Result<T>,
) -> Result<T> {
    let path = text(env, path)?;
    let mut listener = Listener::new(env, listener, HEAR)?;
    let mut hear = |p: Progress| {
        let numbers = [0, 0, p.done as jlong, p.total as jlong];
        match listener.as_mut().is_none_or(|l| l.hear(env, numbers, p.stage)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    Ok(work(&path, &mut hear)?)
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineOpen<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    path: JString<'a>,
    numbers: JIntArray<'a>,
    quality: jfloat,
    memory: jlong,
    cache: JString<'a>,
    pipelines: JString<'a>,
    listener: JObject<'a>,
) -> jlong {
    enter(&mut env, 0, |env| {
        let opening = opening(env, &numbers, quality, memory, [&cache, &pipelines])?;
        let open = |path: &str, progress: Hear| Engine::open_with(path, &opening.engine, progress);
        Ok(number(handles::open::<dollop_engine>(with_path(env, &path, &listener, open)?)?))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_planJson<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    path: JString<'a>,
    numbers: JIntArray<'a>,
    quality: jfloat,
    memory: jlong,
    cache: JString<'a>,
    listener: JObject<'a>,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let opening = opening(env, &numbers, quality, memory, [&cache, &JString::default()])?;
        let plan = |path: &str, progress: Hear| Engine::plan_with(path, &opening.engine, progress);
        let plan = with_path(env, &path, &listener, plan)?;
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
            _ => crate::plan::json(&engine.memory_plan())?,
        };
        java(env, &json)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_engineClose<'a>(mut env: JNIEnv<'a>, _: JClass<'a>, engine: jlong) {
    enter(&mut env, (), |_| handles::close::<dollop_engine>(handle(engine)).map(drop));
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatNew<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    system: JString<'a>,
    context: jint,
    slide: jint,
) -> jlong {
    enter(&mut env, 0, |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let context = usize::try_from(context).map_err(|_| Failure::invalid("a negative context"))?;
        let mut options = SessionOptions::default();
        options.context = (context > 0).then_some(context);
        let system = optional_text(env, &system)?;
        let overflow = if slide != 0 { Overflow::Slide } else { Overflow::Error };
        let chat = Chat::new(engine.session(options)?, system, overflow)?;
        Ok(number(handles::open::<dollop_chat>(Arc::new(Exclusive::new(chat)))?))
    })
}

/// The model's own numbers, over which lie those that `json` has.
fn sampling(own: &Sampling, json: Option<&str>) -> Result<Sampling> {
    let failed = |e: serde_json::Error| Failure::invalid(format!("the sampling: {e}"));
    let mut all = serde_json::to_value(own).map_err(failed)?;
    let over: serde_json::Map<_, _> = serde_json::from_str(json.unwrap_or("{}")).map_err(failed)?;
    for (name, value) in over {
        all[name] = value;
    }
    serde_json::from_value(all).map_err(failed)
}

/// Returns stop, prompt, reused and generated tokens, and seconds of both parts.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatSend<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    message: JString<'a>,
    max_tokens: jint,
    sampling_json: JString<'a>,
    stops: JObjectArray<'a>,
    listener: JObject<'a>,
) -> jdoubleArray {
    enter(&mut env, null_mut(), |env| {
        let shared = handles::get::<dollop_chat>(handle(chat))?;
        let message = text(env, &message)?;
        let json = optional_text(env, &sampling_json)?;
        let mut stop = Vec::new();
        for i in 0..env.get_array_length(&stops)? {
            let one = JString::from(env.get_object_array_element(&stops, i)?);
            stop.push(text(env, &one)?);
        }
        let mut listener = Listener::new(env, &listener, HEAR)?;
        let mut chat = shared.take()?;
        let cancel = CancelToken::new();
        let max_tokens = usize::try_from(max_tokens).map_err(|_| Failure::invalid("negative max_tokens"))?;
        let options = GenerateOptions::default()
            .with_max_tokens(max_tokens)
            .with_sampling(sampling(chat.session().engine().sampling(), json.as_deref())?)
            .with_stop(stop)
            .with_cancel(cancel.clone());
        let running = shared.cancels(&cancel);
        let done = chat.send(&message, &options, &mut |event| {
            let (numbers, text) = match &event {
                Event::Prefill { done, total } => ([0, 0, *done as jlong, *total as jlong], ""),
                Event::Token { id, text } => ([1, (*id).into(), 0, 0], text.as_str()),
                Event::Rest { text } => ([2, 0, 0, 0], text.as_str()),
                Event::GpuLost { note } => ([3, 0, 0, 0], note.as_str()),
                #[allow(unreachable_patterns)] // Events may become more.
                _ => return,
            };
            if let Some(listener) = &mut listener
                && !listener.hear(env, numbers, text)
            {
                cancel.cancel();
            }
        });
        drop((running, chat));
        let done = outcome_of(&done?);
        if env.exception_check()? {
            return Ok(null_mut());
        }
        let array: JDoubleArray = env.new_double_array(6)?;
        let counts =
            [done.stop, done.prompt_tokens, done.reused_tokens, done.generated_tokens].map(f64::from);
        let all = [counts[0], counts[1], counts[2], counts[3], done.prefill_seconds, done.decode_seconds];
        env.set_double_array_region(&array, 0, &all)?;
        Ok(array.into_raw())
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatMessages<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
) -> jstring {
    enter(&mut env, null_mut(), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let json = serde_json::json!(chat.take()?.messages()).to_string();
        java(env, &json)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatSetTime<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    seconds: jlong,
) {
    enter(&mut env, (), |_| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let seconds = u64::try_from(seconds).ok().filter(|&s| s < crate::chat::END_OF_TIME);
        let seconds = seconds.ok_or_else(|| Failure::invalid("a time outside of 1970 to 9999"))?;
        chat.take()?.set_now(DateTime::from_unix(seconds));
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatReset<'a>(mut env: JNIEnv<'a>, _: JClass<'a>, chat: jlong) {
    enter(&mut env, (), |_| {
        handles::get::<dollop_chat>(handle(chat))?.take()?.reset();
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatCancel<'a>(mut env: JNIEnv<'a>, _: JClass<'a>, chat: jlong) {
    enter(&mut env, (), |_| {
        handles::get::<dollop_chat>(handle(chat))?.cancel();
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatClose<'a>(mut env: JNIEnv<'a>, _: JClass<'a>, chat: jlong) {
    enter(&mut env, (), |_| {
        if let Some(chat) = handles::close::<dollop_chat>(handle(chat))? {
            chat.cancel();
        }
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_openHandles<'a>(_: JNIEnv<'a>, _: JClass<'a>) -> jlong {
    handles::dollop_open_handles() as jlong
}
