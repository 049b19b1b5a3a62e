//! The log's listener in Kotlin. It runs on the logging thread, which is first attached to the virtual machine.

use super::{enter, unsigned};
use crate::boundary::Result;
use crate::log::Sink;
use ::log::Level;
use jni::objects::{GlobalRef, JClass, JMethodID, JObject, JValue};
use jni::signature::{Primitive, ReturnType};
use jni::sys::jint;
use jni::{JNIEnv, JavaVM};

/// The signature of `LogSink.receive`.
const RECEIVE: &str = "(ILjava/lang/String;Ljava/lang/String;)V";

/// A listener whose method was looked up once. The reference keeps its class, and so the method, alive.
struct Listener {
    vm: JavaVM,
    object: GlobalRef,
    method: JMethodID,
}

impl Listener {
    fn receive(&self, level: Level, target: &str, message: &str) -> jni::errors::Result<()> {
        // Attached as a daemon, so that a thread that once logged does not keep the virtual machine from ending. It
        // stays attached until it ends, because it will probably log again.
        let mut env = self.vm.attach_current_thread_as_daemon()?;
        // A listener of events may have thrown on this thread. That exception belongs to its caller, and no Java
        // method can be called before it is cleared.
        let thrown = env.exception_occurred()?;
        env.exception_clear()?;
        // In its own local frame. On threads not created by Java, references live as long as the thread.
        let heard = env.with_local_frame(4, |env| self.call(env, level, target, message));
        // Exceptions of this listener are dropped.
        env.exception_clear()?;
        if !thrown.is_null() {
            env.throw(thrown)?;
        }
        heard
    }

    fn call(&self, env: &mut JNIEnv, level: Level, target: &str, message: &str) -> jni::errors::Result<()> {
        let (target, message) = (env.new_string(target)?, env.new_string(message)?);
        let arguments = [
            JValue::Int(level as jint).as_jni(),
            JValue::Object(&target).as_jni(),
            JValue::Object(&message).as_jni(),
        ];
        let returns = ReturnType::Primitive(Primitive::Void);
        // SAFETY: the method was found in the object's class by the signature `RECEIVE`, which these arguments and this type match.
        unsafe { env.call_method_unchecked(&self.object, self.method, returns, &arguments) }?;
        Ok(())
    }
}

fn sink(env: &mut JNIEnv, listener: &JObject) -> Result<Sink> {
    let class = env.get_object_class(listener)?;
    let method = env.get_method_id(class, "receive", RECEIVE)?;
    let listener = Listener { vm: env.get_java_vm()?, object: env.new_global_ref(listener)?, method };
    Ok(Box::new(move |level, target, message| {
        // If the virtual machine cannot attach the thread or allocate a text, the message is lost.
        let _ = listener.receive(level, target, message);
    }))
}

/// `dollop_set_log`. A null listener removes the sink.
#[unsafe(no_mangle)]
extern "system" fn Java_dev_dollop_Native_setLog<'a>(
    mut env: JNIEnv<'a>,
    _: JClass<'a>,
    listener: JObject<'a>,
    level: jint,
) {
    enter(&mut env, (), |env| {
        let level = unsigned("the level", level.into())? as u32;
        let sink = if listener.is_null() { None } else { Some(sink(env, &listener)?) };
        crate::log::set(sink, level)
    });
}
