//! Sessions: plain text and tokens, without a chat template.

use super::generate::{Wanted, generate};
use super::options::session_options;
use super::{enter, handle, ids, java_floats, java_ids, java_longs, number, path, text, unsigned};
use crate::handles::{self, Exclusive, dollop_engine, dollop_session};
use crate::session::{info_of, next_logits};
use jni::JNIEnv;
use jni::objects::{JClass, JIntArray, JObject, JString};
use jni::sys::{jdoubleArray, jfloatArray, jint, jintArray, jlong, jlongArray};
use runtime::Session;
use std::ptr::null_mut;
use std::sync::Arc;

/// The context, the number of tokens in it, and the number computed since the session was created.
pub(super) fn numbers(session: &Session) -> [jlong; 3] {
    let info = info_of(session);
    [info.context, info.tokens, info.processed_tokens].map(|n| n as jlong)
}

fn opened(session: Session) -> crate::boundary::Result<jlong> {
    Ok(number(handles::open::<dollop_session>(Arc::new(Exclusive::new(session)))?))
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionNew<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    context: jint,
    chunk: jint,
) -> jlong {
    enter(&mut env, 0, |_| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        opened(engine.session(session_options(context, chunk)?)?)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionLoad<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    engine: jlong,
    from: JString<'a>,
    context: jint,
    chunk: jint,
) -> jlong {
    enter(&mut env, 0, |env| {
        let engine = handles::get::<dollop_engine>(handle(engine))?;
        opened(engine.load_session(&path(env, &from)?, session_options(context, chunk)?)?)
    })
}

/// Returns the size of the file in bytes.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionSave<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
    to: JString<'a>,
) -> jlong {
    enter(&mut env, 0, |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let path = path(env, &to)?;
        let bytes = session.take()?.save(&path)?;
        Ok(bytes as jlong)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionFork<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
) -> jlong {
    enter(&mut env, 0, |_| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let fork = session.take()?.fork()?;
        opened(fork)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionComplete<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
    prompt: JString<'a>,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jdoubleArray {
    enter(&mut env, null_mut(), |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let prompt = text(env, &prompt)?;
        let wanted = Wanted { options, listener };
        let engine = |s: &Session| s.engine().clone();
        let body = move |s: &mut Session, options: &_, on_event: &mut dyn FnMut(_)| {
            let ids = s.engine().encode_text(&prompt)?;
            s.generate(&ids, options, on_event)
        };
        generate(env, &session, engine, &wanted, Box::new(body))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionGenerate<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
    prompt: JIntArray<'a>,
    options: JString<'a>,
    listener: JObject<'a>,
) -> jdoubleArray {
    enter(&mut env, null_mut(), |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let prompt = ids(env, &prompt)?;
        let wanted = Wanted { options, listener };
        let engine = |s: &Session| s.engine().clone();
        let body = move |s: &mut Session, options: &_, on_event: &mut dyn FnMut(_)| {
            s.generate(&prompt, options, on_event)
        };
        generate(env, &session, engine, &wanted, Box::new(body))
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionLogits<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
    from: JIntArray<'a>,
) -> jfloatArray {
    enter(&mut env, null_mut(), |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let ids = ids(env, &from)?;
        let logits = next_logits(&mut *session.take()?, &ids)?;
        java_floats(env, &logits)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionTokens<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
) -> jintArray {
    enter(&mut env, null_mut(), |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let ids = session.take()?.tokens().to_vec();
        java_ids(env, &ids)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionRewind<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
    count: jint,
) {
    enter(&mut env, (), |_| {
        let session = handles::get::<dollop_session>(handle(session))?;
        session.take()?.rewind(unsigned("the count", count.into())? as usize);
        Ok(())
    });
}

/// Returns the result of `numbers`.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionNumbers<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
) -> jlongArray {
    enter(&mut env, null_mut(), |env| {
        let session = handles::get::<dollop_session>(handle(session))?;
        let numbers = numbers(&*session.take()?);
        java_longs(env, &numbers)
    })
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionCancel<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
) {
    enter(&mut env, (), |_| {
        handles::get::<dollop_session>(handle(session))?.cancel();
        Ok(())
    });
}

#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_sessionClose<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    session: jlong,
) {
    enter(&mut env, (), |_| {
        if let Some(session) = handles::close::<dollop_session>(handle(session))? {
            session.cancel();
        }
        Ok(())
    });
}
