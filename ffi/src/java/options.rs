//! Options from Kotlin: JSON objects whose keys are the names of the fields in `dollop.h`. A missing key or null is the default.

use super::text;
use crate::boundary::{Failure, Result};
use crate::options::{Opening, dollop_engine_options};
use crate::session::dollop_session_options;
use jni::JNIEnv;
use jni::objects::JString;
use jni::sys::jint;
use runtime::SessionOptions;
use serde_json::{Map, Value};
use std::ffi::CString;
use std::ptr::null;

/// The fields of an object. Each is taken once; what is left at the end has a name that this library does not know.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn read(env: &mut JNIEnv, json: &JString) -> Result<Fields> {
        let json = text(env, json)?;
        let fields = serde_json::from_str(&json);
        fields.map(Fields).map_err(|e| Failure::invalid(format!("the options: {e}")))
    }

    pub(super) fn take(&mut self, name: &str) -> Value {
        self.0.remove(name).unwrap_or_default()
    }

    /// An integer within the range of `T`.
    pub(super) fn integer<T: TryFrom<i64>>(&mut self, name: &str) -> Result<Option<T>> {
        match self.take(name) {
            Value::Null => Ok(None),
            value => match value.as_i64().map(T::try_from) {
                Some(Ok(number)) => Ok(Some(number)),
                _ => Err(Failure::invalid(format!("{name} {value}: out of range"))),
            },
        }
    }

    pub(super) fn float(&mut self, name: &str) -> Result<f64> {
        match self.take(name) {
            Value::Null => Ok(0.0),
            value => value.as_f64().ok_or_else(|| Failure::invalid(format!("{name} {value}: not a number"))),
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.take(name) == Value::Bool(true)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name) {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// # Errors
    /// `DOLLOP_INVALID` for a key that is not the name of an option.
    pub(super) fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Failure::invalid(format!("there is no option `{name}`"))),
        }
    }
}

/// Options for opening a model: those of `EngineOptions.json` in Kotlin.
pub(super) fn opening(env: &mut JNIEnv, json: &JString) -> Result<Opening> {
    let mut fields = Fields::read(env, json)?;
    let mut folder = |name: &str| -> Result<Option<CString>> {
        let path = fields.text(name);
        path.map(|p| CString::new(p).map_err(|_| Failure::invalid(format!("{name} contains a NUL"))))
            .transpose()
    };
    let (cache, pipelines) = (folder("cache_folder")?, folder("pipelines_folder")?);
    let pointer = |path: &Option<CString>| path.as_ref().map_or(null(), |p| p.as_ptr());
    let default = dollop_engine_options::default();
    let mut number = |name: &str| fields.integer::<u32>(name).map(Option::unwrap_or_default);
    let options = dollop_engine_options {
        backend: number("backend")?,
        threads: number("threads")?,
        context: number("context")?,
        chunk: number("chunk")?,
        precision: number("precision")?,
        level: number("level")?,
        lanes: number("lanes")?,
        lookahead: number("lookahead")?,
        experts_used: number("experts_used")?,
        always_stream: fields.flag("always_stream").into(),
        gpu_index: fields.integer("gpu_index")?.unwrap_or(default.gpu_index),
        memory_bytes: fields.integer("memory_bytes")?.unwrap_or(default.memory_bytes),
        quality: fields.float("quality")? as f32,
        skip_cold: fields.float("skip_cold")? as f32,
        cache_prior: fields.float("cache_prior")? as f32,
        cache_folder: pointer(&cache),
        pipelines_folder: pointer(&pipelines),
        ..default
    };
    fields.finish()?;
    // SAFETY: the folders are NULL or texts of this function.
    unsafe { options.opening() }
}

/// Options for creating or restoring a session. 0 means the planned number.
pub(super) fn session_options(context: jint, chunk: jint) -> Result<SessionOptions> {
    let given = |name, n: jint| {
        u32::try_from(n).map_err(|_| Failure::invalid(format!("{name} {n}: it must not be negative")))
    };
    let (context, chunk) = (given("context", context)?, given("chunk", chunk)?);
    Ok(dollop_session_options { context, chunk, ..Default::default() }.options())
}
