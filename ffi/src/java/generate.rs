//! Generation for Kotlin. Takes options, reports events through a listener, returns six numbers.

use super::listener::Listener;
use super::options::Fields;
use crate::boundary::{Failure, Result};
use crate::generate::{constraint, outcome_of, target};
use crate::handles::Exclusive;
use crate::status::dollop_status::DOLLOP_OTHER;
use jni::JNIEnv;
use jni::objects::{JDoubleArray, JObject, JString};
use jni::sys::{jdoubleArray, jlong};
use runtime::sampler::{Link, Sampling};
use runtime::{Engine, Event, GenerateOptions, Outcome};
use serde_json::Value;
use std::ptr::null_mut;

/// What Kotlin passes to a generation.
pub(super) struct Wanted<'a> {
    /// `GenerateOptions.json` in Kotlin.
    pub(super) options: JString<'a>,
    /// A `Listener`, or null.
    pub(super) listener: JObject<'a>,
}

impl Wanted<'_> {
    fn options(&self, env: &mut JNIEnv, own: &Sampling) -> Result<GenerateOptions> {
        let mut fields = Fields::read(env, &self.options)?;
        let mut options = GenerateOptions::default();
        if let Some(most) = fields.integer::<u32>("max_tokens")? {
            options.max_tokens = most as usize;
        }
        options.ignore_eos = fields.flag("ignore_eos");
        options.target_tps = target(fields.float("target_tps")?)?;
        options.sampling = sampling(own, fields.take("sampling"))?;
        if let Value::Array(texts) = fields.take("stop") {
            options.stop = texts.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        let forms = ["json_schema", "regex", "grammar"].map(|name| fields.text(name));
        options.constraint = constraint(forms.each_ref().map(Option::as_deref))?;
        fields.finish()?;
        Ok(options)
    }
}

/// The model's own sampling, overridden by the fields of a JSON object.
fn sampling(own: &Sampling, over: Value) -> Result<Sampling> {
    let failed = |e| Failure::invalid(format!("the sampling: {e}"));
    let mut all = serde_json::to_value(own).map_err(failed)?;
    if let Value::Object(over) = over {
        for (name, value) in over {
            all[&name] = match value {
                Value::String(chain) if name == "chain" => {
                    serde_json::to_value(Link::chain(&chain)?).map_err(failed)?
                }
                value => value,
            };
        }
    }
    serde_json::from_value(all).map_err(failed)
}

/// A sampling as a JSON object. The chain is a text, as in C.
pub(super) fn sampling_json(sampling: &Sampling) -> Result<String> {
    let failed = |e| Failure::new(DOLLOP_OTHER, format!("the sampling: {e}"));
    let mut all = serde_json::to_value(sampling).map_err(failed)?;
    let chain: Vec<&str> = all["chain"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    all["chain"] = chain.join(";").into();
    Ok(all.to_string())
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
