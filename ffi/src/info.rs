//! A model's dimensions and sizes: `dollop_model_info`, and the same as JSON.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::handles::{self, dollop_engine};
use crate::outputs::{Out, OutStruct};
use crate::status::dollop_status::{self, *};
use runtime::Engine;
use serde_json::json;
use std::ffi::c_char;

/// A model's dimensions and sizes. `dollop_engine_info_json` also has its names.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_model_info {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// Transformer blocks.
    pub layers: u32,
    /// Experts per routed layer; 0 for a dense model.
    pub experts: u32,
    /// Experts per token.
    pub experts_used: u32,
    /// Hidden width of a routed expert; 0 for a dense model.
    pub expert_width: u32,
    /// The longest context that the model was trained for, in tokens.
    pub context: u32,
    /// Tokens in the vocabulary: token ids are below this, and an array of logits has this many elements.
    pub vocab: u32,
    /// Token at the beginning of a text; -1 for none.
    pub bos: i64,
    /// Token at the end of a text; -1 for none.
    pub eos: i64,
    /// Weights in all matrices.
    pub parameters: u64,
    /// Weights in the matrices that one token uses.
    pub active_parameters: u64,
    /// Bytes of all weights at the level in use.
    pub bytes: u64,
    /// Bytes of the weights that one token reads.
    pub active_bytes: u64,
    /// Threads that compute.
    pub threads: u32,
    /// 1 if the model has a chat template.
    pub has_chat_template: u32,
}

impl Default for dollop_model_info {
    fn default() -> Self {
        dollop_model_info {
            struct_size: size_of::<Self>(),
            layers: 0,
            experts: 0,
            experts_used: 0,
            expert_width: 0,
            context: 0,
            vocab: 0,
            bos: -1,
            eos: -1,
            parameters: 0,
            active_parameters: 0,
            bytes: 0,
            active_bytes: 0,
            threads: 0,
            has_chat_template: 0,
        }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_model_info {
    const NAME: &'static str = "dollop_model_info";
}

/// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_model_info_init(
    info: *mut dollop_model_info,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(info, struct_size, |i| i.struct_size = struct_size) })
}

/// Fills `info`. `info->struct_size` must be set. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_info(
    engine: *const dollop_engine,
    info: *mut dollop_model_info,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        let (i, special) = (engine.info(), engine.special_tokens());
        let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        info.set(dollop_model_info {
            layers: n(i.layers),
            experts: n(i.experts),
            experts_used: n(i.experts_used),
            expert_width: n(i.expert_width),
            context: n(i.context),
            vocab: n(i.vocab),
            bos: special.bos.map_or(-1, i64::from),
            eos: special.eos.map_or(-1, i64::from),
            parameters: i.parameters,
            active_parameters: i.active_parameters,
            bytes: i.bytes,
            active_bytes: i.active_bytes,
            threads: n(engine.threads()),
            has_chat_template: u32::from(engine.chat_template().is_ok()),
            ..dollop_model_info::default()
        });
        Ok(())
    })
}

/// Everything about a model, as a JSON object.
pub(crate) fn json(engine: &Engine) -> Result<String> {
    let mut info = serde_json::to_value(engine.info())
        .map_err(|e| Failure::new(DOLLOP_OTHER, format!("the model's info: {e}")))?;
    let special = engine.special_tokens();
    info["bos"] = json!(special.bos);
    info["eos"] = json!(special.eos);
    info["threads"] = json!(engine.threads());
    info["has_chat_template"] = json!(engine.chat_template().is_ok());
    info["note"] = json!(engine.note());
    Ok(info.to_string())
}

/// As `dollop_engine_info`, but with more fields and as a JSON object: also name, architecture, mode and processor. `note`
/// gives the reason if the CPU computes instead of a preferred or failed GPU. Free `*json` with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_info_json(
    engine: *const dollop_engine,
    json: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let out = unsafe { Out::new("json", json) }?;
        out.set_text(&self::json(&engine)?);
        Ok(())
    })
}
