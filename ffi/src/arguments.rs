//! Checks of the arguments from C: texts, arrays, option structs.
//!
//! Every function here is unsafe for one reason: it dereferences a pointer from C. Callers argue with the contract of
//! `lib.rs`.

use crate::boundary::{Failure, Result};
use crate::status::dollop_status::*;
use std::ffi::{CStr, c_char};
use std::path::PathBuf;

/// The longest array that a caller may pass, in elements: a negative number that became unsigned is larger.
const MAX_ELEMENTS: usize = 1 << 28;

fn null(name: &str) -> Failure {
    Failure::new(DOLLOP_NULL, format!("{name} is NULL"))
}

/// A text that ends with a NUL.
///
/// # Safety
/// `text` is NULL, or a text that ends with a NUL and stays as it is for `'a`.
pub(crate) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so by the caller's contract a text that ends with a NUL.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|e| Failure::new(DOLLOP_UTF8, format!("{name} is not UTF-8: {e}")))
}

/// The same, but NULL means no text.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(name: &str, pointer: *const c_char) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as of this function.
    unsafe { text(name, pointer) }.map(Some)
}

/// A path. Bytes on Unix, where paths need not be UTF-8; UTF-8 elsewhere.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf> {
    if pointer.is_null() {
        return Err(null(name));
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: not NULL, so by the caller's contract a text that ends with a NUL.
        let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    {
        // SAFETY: as of this function.
        unsafe { text(name, pointer) }.map(PathBuf::from)
    }
}

/// An array of `len` elements, which may be NULL if `len` is 0.
///
/// # Safety
/// `array` is NULL, or has `len` elements that stay as they are for `'a`.
pub(crate) unsafe fn array<'a, T>(name: &str, array: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if array.is_null() {
        return Err(null(name));
    }
    if len > MAX_ELEMENTS || !array.is_aligned() {
        return Err(Failure::invalid(format!("{name}: {len} elements at {array:p} are no array")));
    }
    // SAFETY: neither NULL nor misaligned, and by the caller's contract `len` elements.
    Ok(unsafe { std::slice::from_raw_parts(array, len) })
}

/// An array of texts.
///
/// # Safety
/// As [`array`], and each element as in [`text`].
pub(crate) unsafe fn texts(name: &str, from: *const *const c_char, len: usize) -> Result<Vec<String>> {
    // SAFETY: as of this function.
    let pointers = unsafe { array(name, from, len) }?;
    // SAFETY: as of this function, for each element.
    pointers.iter().map(|&p| unsafe { text(name, p) }.map(str::to_owned)).collect()
}

/// A struct that begins with its size, so that a program and a library of different versions understand each other.
///
/// # Safety
/// A `repr(C)` type whose first field is a `usize`, the struct's size, and of which any bytes are a value (numbers, raw
/// pointers, optional function pointers, which by the contract of `lib.rs` are NULL or functions).
pub(crate) unsafe trait Struct: Copy + Default {
    /// Its name in C.
    const NAME: &'static str;
    /// Bytes of its first version, with which all later ones begin.
    const FIRST: usize = size_of::<Self>();

    /// # Errors
    /// `DOLLOP_STRUCT_SIZE` for a size that no version of the struct has had.
    fn check(size: usize) -> Result<()> {
        // A size between two fields' ends is no version: a part of a pointer would be read as one.
        if (Self::FIRST..=size_of::<Self>()).contains(&size) && size.is_multiple_of(align_of::<Self>()) {
            return Ok(());
        }
        let (name, known) = (Self::NAME, size_of::<Self>());
        let text = format!(
            "{name}: struct_size is {size}, and this library knows {known}: call {name}_init, and use the library's own header"
        );
        Err(Failure::new(DOLLOP_STRUCT_SIZE, text))
    }

    /// # Safety
    /// `from` is NULL, or points to a `usize` and as many bytes in all as it says.
    unsafe fn read(from: *const Self) -> Result<Self> {
        if from.is_null() {
            return Err(null(Self::NAME));
        }
        // SAFETY: not NULL; the first field is a `usize`, and it may be misaligned.
        let size = unsafe { from.cast::<usize>().read_unaligned() };
        Self::check(size)?;
        let mut value = Self::default();
        // SAFETY: `size` bytes are there by the caller's contract, and `value` has room for them by the check. Any bytes
        // are a value by the contract of the trait; what the caller's struct lacks keeps its default.
        unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size) };
        Ok(value)
    }

    /// # Safety
    /// As [`Struct::read`].
    unsafe fn read_or_default(from: *const Self) -> Result<Self> {
        if from.is_null() {
            return Ok(Self::default());
        }
        // SAFETY: as of this function.
        unsafe { Self::read(from) }
    }
}

/// The body of a struct's `_init`: writes the defaults, up to the size of the caller's struct.
///
/// # Safety
/// `to` is NULL or has `size` bytes to write to.
pub(crate) unsafe fn init<T: Struct>(to: *mut T, size: usize, with_size: impl FnOnce(&mut T)) -> Result<()> {
    if to.is_null() {
        return Err(null(T::NAME));
    }
    T::check(size)?;
    let mut value = T::default();
    with_size(&mut value);
    // SAFETY: `size` bytes may be written to by the caller's contract, and `value` has as many by the check.
    unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast::<u8>(), size) };
    Ok(())
}
