//! Passes events of a native call, as numbers and a text, to a Kotlin listener on the thread of the call.

use crate::boundary::Result;
use jni::JNIEnv;
use jni::objects::{JMethodID, JObject, JValue};
use jni::signature::{Primitive, ReturnType};
use jni::sys::jlong;

/// The signature of `Listener.receive`.
const RECEIVE: &str = "(JJJJLjava/lang/String;)Z";

/// A listener and its method, looked up once for all events of a call.
pub(super) struct Listener<'a> {
    object: &'a JObject<'a>,
    method: JMethodID,
    /// It has returned false or thrown.
    stopped: bool,
}

impl<'a> Listener<'a> {
    pub(super) fn new(env: &mut JNIEnv, object: &'a JObject<'a>) -> Result<Option<Listener<'a>>> {
        if object.is_null() {
            return Ok(None);
        }
        let class = env.get_object_class(object)?;
        let method = env.get_method_id(class, "receive", RECEIVE)?;
        Ok(Some(Listener { object, method, stopped: false }))
    }

    /// Whether it has returned false or thrown. The virtual machine must not be called after that.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Calls the listener. Returns whether to continue.
    pub(super) fn receive(&mut self, env: &mut JNIEnv, numbers: [jlong; 4], text: &str) -> bool {
        if self.stopped {
            return false;
        }
        // In its own local frame. Otherwise a call with thousands of texts would hold a reference to each.
        let answer = env.with_local_frame(4, |env| {
            let text = env.new_string(text)?;
            let n = numbers.map(|n| JValue::Long(n).as_jni());
            let arguments = [n[0], n[1], n[2], n[3], JValue::Object(&text).as_jni()];
            let returns = ReturnType::Primitive(Primitive::Boolean);
            // SAFETY: the method was found in the object's class by the signature `RECEIVE`, which these arguments and
            // this type match.
            unsafe { env.call_method_unchecked(self.object, self.method, returns, &arguments) }?.z()
        });
        self.stopped = !answer.unwrap_or(false);
        !self.stopped
    }
}
