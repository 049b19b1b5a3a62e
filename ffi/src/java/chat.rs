//! Conversations.

use super::generate::{Wanted, generate};
use super::options::session_options;
use super::{enter, handle, java, java_longs, number, optional_text, path, text, unsigned};
use crate::boundary::{Failure, Result};
use crate::chat::END_OF_TIME;
use crate::handles::{self, Exclusive, dollop_chat, dollop_engine};
use jni::JNIEnv;
use jni::objects::{JClass, JObject, JString};
use jni::sys::{jdoubleArray, jint, jlong, jlongArray, jstring};
use runtime::Chat;
use runtime::template::{DateTime, Message};
use std::ptr::null_mut;
use std::sync::Arc;

/// Messages from a JSON array of objects with `role` and `content`.
pub(super) fn messages(env: &mut JNIEnv, json: &JString) -> Result<Vec<Message>> {
    let messages = serde_json::from_str(&text(env, json)?);
    messages.map_err(|e| Failure::invalid(format!("not an array of messages: {e}")))
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatNew<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    system: JString<'a>,
    context: jint,
    chunk: jint,
    overflow: jint,
) -> jlong {
    enter(&mut env, 0, |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let system = optional_text(env, &system)?;
        let overflow = crate::chat::overflow(unsigned("overflow", overflow.into())? as u32)?;
        let chat = Chat::new(engine.session(session_options(context, chunk)?)?, system, overflow)?;
        Ok(number(handles::open::<dollop_chat>(Arc::new(Exclusive::new(chat)))?))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatLoad<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    from: JString<'a>,
    context: jint,
    chunk: jint,
) -> jlong {
    enter(&mut env, 0, |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        let chat = engine.load_chat(&path(env, &from)?, session_options(context, chunk)?)?;
        Ok(number(handles::open::<dollop_chat>(Arc::new(Exclusive::new(chat)))?))
    })
}

/// Returns the size of the file in bytes.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatSave<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    to: JString<'a>,
) -> jlong {
    enter(&mut env, 0, |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let path = path(env, &to)?;
        let bytes = chat.take()?.save(&path)?;
        Ok(bytes as jlong)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatSend<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    message: JString<'a>,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jdoubleArray {
    enter(&mut env, null_mut(), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let message = text(env, &message)?;
        let wanted = Wanted { options, listener };
        let engine = |c: &Chat| c.session().engine().clone();
        generate(
            env,
            &chat,
            engine,
            &wanted,
            Box::new(move |c, options, on_event| c.send(&message, options, on_event)),
        )
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatRegenerate<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jdoubleArray {
    enter(&mut env, null_mut(), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let wanted = Wanted { options, listener };
        let engine = |c: &Chat| c.session().engine().clone();
        generate(
            env,
            &chat,
            engine,
            &wanted,
            Box::new(|c, options, on_event| c.regenerate(options, on_event)),
        )
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
extern "system" fn Java_dev_dollop_Native_chatSetMessages<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    json: JString<'a>,
) {
    enter(&mut env, (), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let messages = messages(env, &json)?;
        chat.take()?.restore(messages);
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatSetVariables<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
    json: JString<'a>,
) {
    enter(&mut env, (), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let variables = serde_json::from_str(&text(env, &json)?)
            .map_err(|e| Failure::invalid(format!("the variables are not a JSON object: {e}")))?;
        chat.take()?.set_variables(variables);
        Ok(())
    });
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
        let seconds = unsigned("the time", seconds)?;
        if seconds >= END_OF_TIME {
            return Err(Failure::invalid(format!("{seconds} seconds: the time is after the year 9999")));
        }
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

/// Returns the context, the number of tokens in it, and the number computed since the session was created.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_chatNumbers<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    chat: jlong,
) -> jlongArray {
    enter(&mut env, null_mut(), |env| {
        let chat = handles::get::<dollop_chat>(handle(chat))?;
        let numbers = super::session::numbers(chat.take()?.session());
        java_longs(env, &numbers)
    })
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
