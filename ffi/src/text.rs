//! Texts that the library returns; conversion of text to tokens and back.

use crate::arguments;
use crate::boundary::run;
use crate::handles::{self, dollop_engine};
use crate::outputs::{Out, OutArray};
use crate::status::dollop_status;
use std::ffi::{CString, c_char};

/// Frees a text that a function of this library wrote to a `char **`. NULL does nothing. Use it for no other
/// memory, and nothing else for these texts. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_text_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: by this function's contract, `Out::set_text` made this text with `CString::into_raw`.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Converts text to token ids. If `add_special` is not 0, this adds the tokens that the model wants around a text
/// (BOS, EOS). Writes the number of ids to `*count`. Writes the ids to `ids`, which has room for `capacity`
/// elements, unless it is NULL. `DOLLOP_TOO_SMALL` if there are more ids than that. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_tokenize(
    engine: *const dollop_engine,
    text: *const c_char,
    add_special: i32,
    ids: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for a text, an array of `capacity`, and a number.
        let (text, ids, count) = unsafe {
            (arguments::text("text", text)?, OutArray::new(ids, capacity), Out::new("count", count)?)
        };
        let found = engine.tokenizer()?.encode(text, add_special != 0)?;
        ids.set("ids", &found)?;
        count.set(found.len());
        Ok(())
    })
}

/// Converts `count` token ids to text. If `skip_special` is not 0, control tokens are left out. `DOLLOP_INVALID`
/// for ids outside the vocabulary. Free `*text` with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_detokenize(
    engine: *const dollop_engine,
    ids: *const u32,
    count: usize,
    skip_special: i32,
    text: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`, for an array of `count` and a destination for a pointer.
        let (ids, text) = unsafe { (arguments::array("ids", ids, count)?, Out::new("text", text)?) };
        let (tokenizer, vocab) = (engine.tokenizer()?, engine.info().vocab);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(crate::boundary::Failure::invalid(format!("token {id}: the vocabulary has {vocab}")));
        }
        text.set_text(&tokenizer.decode(ids, skip_special != 0));
        Ok(())
    })
}
