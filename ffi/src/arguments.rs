//! Checks arguments from C: texts, arrays, option structs.
//!
//! Every function here is unsafe for one reason: it dereferences a pointer from C. Callers rely on the contract of
//! `lib.rs`.

use crate::boundary::{Failure, Result};
use crate::status::dollop_status::*;
use std::ffi::{CStr, c_char};
use std::path::PathBuf;

/// The longest array that a caller may pass, in elements. A negative number converted to unsigned is larger.
const MAX_ELEMENTS: usize = 1 << 28;

fn null(name: &str) -> Failure {
    Failure::new(DOLLOP_NULL, format!("{name} is NULL"))
}

/// A NUL-terminated text.
///
/// # Safety
/// `text` is NULL, or a NUL-terminated text that does not change for `'a`.
pub(crate) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so by this function's contract a NUL-terminated text.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|e| Failure::new(DOLLOP_UTF8, format!("{name} is not UTF-8: {e}")))
}

/// Like [`text`], but NULL means no text.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn optional_text<'a>(name: &str, pointer: *const c_char) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    unsafe { text(name, pointer) }.map(Some)
}

/// A path. On Unix its bytes, which need not be UTF-8; elsewhere UTF-8.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf> {
    if pointer.is_null() {
        return Err(null(name));
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: not NULL, so by this function's contract a NUL-terminated text.
        let bytes = unsafe { CStr::from_ptr(pointer) }.to_bytes();
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    {
        // SAFETY: by this function's contract.
        unsafe { text(name, pointer) }.map(PathBuf::from)
    }
}

/// An array of `len` elements. It may be NULL if `len` is 0.
///
/// # Safety
/// `array` is NULL, or has `len` elements that do not change for `'a`.
pub(crate) unsafe fn array<'a, T>(name: &str, array: *const T, len: usize) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if array.is_null() {
        return Err(null(name));
    }
    if len > MAX_ELEMENTS || !array.is_aligned() {
        return Err(Failure::invalid(format!("{name}: invalid array of {len} elements at {array:p}")));
    }
    // SAFETY: not NULL and aligned, and by this function's contract it has `len` elements.
    Ok(unsafe { std::slice::from_raw_parts(array, len) })
}

/// An array of texts.
///
/// # Safety
/// As for [`array`], and for each element as for [`text`].
pub(crate) unsafe fn texts(name: &str, from: *const *const c_char, len: usize) -> Result<Vec<String>> {
    // SAFETY: by this function's contract.
    let pointers = unsafe { array(name, from, len) }?;
    // SAFETY: by this function's contract, which holds for each element.
    pointers.iter().map(|&p| unsafe { text(name, p) }.map(str::to_owned)).collect()
}

/// A struct that begins with its size, so that programs and libraries of different versions work together.
///
/// # Safety
/// The type is `repr(C)`. Its first field is a `usize`, the struct's size. Any bytes are a valid value: numbers,
/// raw pointers, and optional function pointers, which by the contract of `lib.rs` are NULL or functions.
pub(crate) unsafe trait Struct: Copy + Default {
    /// The struct's name in C.
    const NAME: &'static str;
    /// Size of the first version in bytes. All later versions begin with it.
    const FIRST: usize = size_of::<Self>();

    /// # Errors
    /// `DOLLOP_STRUCT_SIZE` for a size that no version of the struct has.
    fn check(size: usize) -> Result<()> {
        // No version ends inside a field. Such a size would cut a pointer in two.
        if (Self::FIRST..=size_of::<Self>()).contains(&size) && size.is_multiple_of(align_of::<Self>()) {
            return Ok(());
        }
        let (name, known) = (Self::NAME, size_of::<Self>());
        let text = format!(
            "{name}: struct_size is {size}, but {known} in this library: call {name}_init, and use this library's header"
        );
        Err(Failure::new(DOLLOP_STRUCT_SIZE, text))
    }

    /// # Safety
    /// `from` is NULL, or points to a `usize` that gives the number of readable bytes there, itself included.
    unsafe fn read(from: *const Self) -> Result<Self> {
        if from.is_null() {
            return Err(null(Self::NAME));
        }
        // SAFETY: not NULL; the first field is a `usize`, and it may be misaligned.
        let size = unsafe { from.cast::<usize>().read_unaligned() };
        Self::check(size)?;
        let mut value = Self::default();
        // SAFETY: `size` bytes are readable by this function's contract, and `value` has room for them by the check. Any
        // bytes are a valid value by the trait's contract. Fields that the caller's struct lacks keep their defaults.
        unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), size) };
        Ok(value)
    }

    /// # Safety
    /// As for [`Struct::read`].
    unsafe fn read_or_default(from: *const Self) -> Result<Self> {
        if from.is_null() {
            return Ok(Self::default());
        }
        // SAFETY: by this function's contract.
        unsafe { Self::read(from) }
    }
}

/// The body of a struct's `_init`: writes the defaults, up to the size of the caller's struct.
///
/// # Safety
/// `to` is NULL, or `size` bytes are writable there.
pub(crate) unsafe fn init<T: Struct>(to: *mut T, size: usize, with_size: impl FnOnce(&mut T)) -> Result<()> {
    if to.is_null() {
        return Err(null(T::NAME));
    }
    T::check(size)?;
    let mut value = T::default();
    with_size(&mut value);
    // SAFETY: `size` bytes are writable by this function's contract, and `value` has as many by the check.
    unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast::<u8>(), size) };
    Ok(())
}
