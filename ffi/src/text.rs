//! Texts that the library returns, and conversions between texts and tokens.

use crate::arguments;
use crate::boundary::run;
use crate::handles::{self, dollop_engine};
use crate::outputs::{Out, OutArray};
use crate::status::dollop_status;
use std::ffi::{CString, c_char};

/// Frees a text that a function of this library wrote to a `char **`; NULL is fine. Any thread. Nothing else may be freed
/// with it, and these texts with nothing else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_text_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: by the contract of this function a text of `Out::set_text`, which came from `CString::into_raw`.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// Turns text into token ids. With `add_special` (not 0) the tokens that the model wants at the beginning of a text come
/// first. Writes `*count`, and the ids to `ids`, which has room for `capacity`; with `ids` NULL only the count.
/// `DOLLOP_TOO_SMALL` if there are more. Any thread.
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
        // SAFETY: the contract of pointers in `lib.rs`, for a text, an array of `capacity` and a number.
        let (text, ids, count) = unsafe {
            (arguments::text("text", text)?, OutArray::new(ids, capacity), Out::new("count", count)?)
        };
        let found = engine.tokenizer()?.encode(text, add_special != 0)?;
        ids.set("ids", &found)?;
        count.set(found.len());
        Ok(())
    })
}

/// Turns `count` token ids into text; with `skip_special` (not 0) tokens that are no text are left out. Unknown ids are
/// `DOLLOP_INVALID`. `*text` is freed with `dollop_text_free`. Any thread.
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
        // SAFETY: the contract of pointers in `lib.rs`, for an array of `count` and a place for a pointer.
        let (ids, text) = unsafe { (arguments::array("ids", ids, count)?, Out::new("text", text)?) };
        let (tokenizer, vocab) = (engine.tokenizer()?, engine.info().vocab);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(crate::boundary::Failure::invalid(format!("token {id}: there are {vocab}")));
        }
        text.set_text(&tokenizer.decode(ids, skip_special != 0));
        Ok(())
    })
}
