//! Generation for Kotlin. Takes options, reports events through a listener, returns six numbers.

use super::listener::Listener;
use super::{optional_text, text};
use crate::boundary::{Failure, Result};
use crate::generate::outcome_of;
use crate::handles::Exclusive;
use jni::JNIEnv;
use jni::objects::{JDoubleArray, JObject, JObjectArray, JString};
use jni::sys::{jdoubleArray, jint, jlong};
use runtime::sampler::Sampling;
use runtime::{Constraint, Engine, Event, GenerateOptions, Outcome};
use std::ptr::null_mut;

/// The options of a generation, as Kotlin passes them.
pub(super) struct Wanted<'a> {
    pub(super) max_tokens: jint,
    /// A JSON object with the differences from the model's own sampling, or null.
    pub(super) sampling: JString<'a>,
    pub(super) stop: JObjectArray<'a>,
    /// A JSON Schema if the number is 1, a regular expression if 2, a grammar if 3; null for none.
    pub(super) constraint: (jint, JString<'a>),
    /// A `Listener`, or null.
    pub(super) listener: JObject<'a>,
}

impl Wanted<'_> {
    fn options(&self, env: &mut JNIEnv, own: &Sampling) -> Result<GenerateOptions> {
        let mut options = GenerateOptions::default();
        let json = optional_text(env, &self.sampling)?;
        for i in 0..env.get_array_length(&self.stop)? {
            let one = JString::from(env.get_object_array_element(&self.stop, i)?);
            options.stop.push(text(env, &one)?);
            env.delete_local_ref(one)?;
        }
        options.max_tokens =
            usize::try_from(self.max_tokens).map_err(|_| Failure::invalid("max_tokens is negative"))?;
        options.sampling = sampling(own, json.as_deref())?;
        let (kind, of) = (self.constraint.0, optional_text(env, &self.constraint.1)?);
        options.constraint = match (kind, of) {
            (_, None) => None,
            (1, Some(text)) => Some(Constraint::json_schema(text)),
            (2, Some(text)) => Some(Constraint::regex(text)),
            (3, Some(text)) => Some(Constraint::lark(text)),
            (kind, _) => return Err(Failure::invalid(format!("a constraint of kind {kind}"))),
        };
        Ok(options)
    }
}

/// The model's own sampling, overridden by the fields of a JSON object.
fn sampling(own: &Sampling, json: Option<&str>) -> Result<Sampling> {
    let failed = |e| Failure::invalid(format!("the sampling: {e}"));
    let mut all = serde_json::to_value(own).map_err(failed)?;
    let over: serde_json::Map<_, _> = serde_json::from_str(json.unwrap_or("{}")).map_err(failed)?;
    for (name, value) in over {
        all[name] = value;
    }
    serde_json::from_value(all).map_err(failed)
}

/// The part of a call that generates, with exclusive access to the value.
type Body<'a, T> =
    dyn FnOnce(&mut T, &GenerateOptions, &mut dyn FnMut(Event)) -> runtime::Result<Outcome> + 'a;

/// Locks a session or a chat and generates. Returns stop, prompt, reused and generated tokens, and the seconds of both phases.
pub(super) fn generate<T>(
    env: &mut JNIEnv,
    with: &Exclusive<T>,
    engine: impl FnOnce(&T) -> Engine,
    wanted: &Wanted,
    body: Box<Body<T>>,
) -> Result<jdoubleArray> {
    let mut listener = Listener::new(env, &wanted.listener)?;
    let mut value = with.take()?;
    let engine = engine(&value);
    let options = wanted.options(env, engine.sampling())?;
    let running = with.cancels(&options.cancel);
    let done = body(&mut value, &options, &mut |event| {
        let (numbers, text) = match &event {
            Event::Prefill { done, total } => ([0, 0, *done as jlong, *total as jlong], ""),
            // Reasoning is not part of the answer: a token without text.
            Event::Reasoning { id, .. } => ([1, (*id).into(), 0, 0], ""),
            Event::Token { id, text } => ([1, (*id).into(), 0, 0], text.as_str()),
            Event::Rest { text } => ([2, 0, 0, 0], text.as_str()),
            Event::GpuLost { note } => ([3, 0, 0, 0], note.as_str()),
            #[allow(unreachable_patterns)] // Further events may be added.
            _ => return,
        };
        if let Some(listener) = &mut listener
            && !listener.receive(env, numbers, text)
        {
            options.cancel.cancel();
        }
    });
    drop((running, value));
    let done = outcome_of(&done?);
    if env.exception_check()? {
        return Ok(null_mut());
    }
    let array: JDoubleArray = env.new_double_array(6)?;
    let counts = [done.stop, done.prompt_tokens, done.reused_tokens, done.generated_tokens].map(f64::from);
    let all = [counts[0], counts[1], counts[2], counts[3], done.prefill_seconds, done.decode_seconds];
    env.set_double_array_region(&array, 0, &all)?;
    Ok(array.into_raw())
}
