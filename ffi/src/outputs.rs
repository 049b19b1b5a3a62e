//! Outputs. They are checked before the work and written after it, so a failed call leaves them unchanged.

use crate::arguments::Struct;
use crate::boundary::{Failure, Result};
use crate::status::dollop_status::*;
use std::ffi::{CString, c_char};
use std::ptr::NonNull;

/// A destination for a value, or none if the caller passed NULL.
pub(crate) struct Out<T>(Option<NonNull<T>>);

impl<T> Out<T> {
    /// A required destination.
    ///
    /// # Safety
    /// `to` is NULL, or a value can be written to it until this is used.
    pub(crate) unsafe fn new(name: &str, to: *mut T) -> Result<Out<T>> {
        match NonNull::new(to) {
            Some(place) => Ok(Out(Some(place))),
            None => Err(Failure::new(DOLLOP_NULL, format!("{name} is NULL"))),
        }
    }

    /// A destination that may be NULL.
    ///
    /// # Safety
    /// As for [`Out::new`].
    pub(crate) unsafe fn optional(to: *mut T) -> Out<T> {
        Out(NonNull::new(to))
    }

    /// Writes the value, if there is a destination.
    pub(crate) fn set(self, value: T) {
        if let Some(place) = self.0 {
            // SAFETY: a value can be written there by the constructor's contract.
            unsafe { place.write_unaligned(value) };
        }
    }
}

impl Out<*mut c_char> {
    /// Writes a text that the caller must free. A NUL would end it in C, so each becomes U+FFFD.
    pub(crate) fn set_text(self, text: &str) {
        if self.0.is_some() {
            let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
            self.set(text.into_raw());
        }
    }
}

/// A struct to fill, up to the size of the caller's version.
pub(crate) struct OutStruct<T: Struct>(Option<(NonNull<T>, usize)>);

impl<T: Struct> OutStruct<T> {
    /// A required struct.
    ///
    /// # Safety
    /// `to` is NULL, or begins with a `usize` that gives the number of bytes that can be written until this is used.
    pub(crate) unsafe fn new(to: *mut T) -> Result<OutStruct<T>> {
        // SAFETY: by this function's contract.
        let place = unsafe { OutStruct::optional(to) }?;
        match place.0 {
            Some(_) => Ok(place),
            None => Err(Failure::new(DOLLOP_NULL, format!("{} is NULL", T::NAME))),
        }
    }

    /// A struct that may be NULL.
    ///
    /// # Safety
    /// As for [`OutStruct::new`].
    pub(crate) unsafe fn optional(to: *mut T) -> Result<OutStruct<T>> {
        let Some(place) = NonNull::new(to) else { return Ok(OutStruct(None)) };
        // SAFETY: not NULL, so by this function's contract it begins with a `usize`.
        let size = unsafe { place.cast::<usize>().read_unaligned() };
        T::check(size)?;
        Ok(OutStruct(Some((place, size))))
    }

    /// Fills the struct, except for its size field.
    pub(crate) fn set(self, value: T) {
        let Some((place, size)) = self.0 else { return };
        let head = size_of::<usize>();
        // SAFETY: `size` bytes are writable there by the constructor's contract. `value` has at least as many,
        // because `check` allows no more. Both begin with the size, which is skipped.
        unsafe {
            let from = (&raw const value).cast::<u8>().add(head);
            std::ptr::copy_nonoverlapping(from, place.as_ptr().cast::<u8>().add(head), size - head);
        }
    }
}

/// A caller's array to fill, or none if the caller needs only the count.
pub(crate) struct OutArray<T: Copy> {
    to: Option<NonNull<T>>,
    capacity: usize,
}

impl<T: Copy> OutArray<T> {
    /// # Safety
    /// `to` is NULL, or has room for `capacity` elements until this is used.
    pub(crate) unsafe fn new(to: *mut T, capacity: usize) -> OutArray<T> {
        OutArray { to: NonNull::new(to), capacity }
    }

    /// # Errors
    /// `DOLLOP_TOO_SMALL` if there is an array, but with room for fewer than `needed` elements.
    pub(crate) fn check(&self, name: &str, needed: usize) -> Result<()> {
        if self.to.is_some() && self.capacity < needed {
            let text = format!("{name} has room for {} elements, but {needed} are needed", self.capacity);
            return Err(Failure::new(DOLLOP_TOO_SMALL, text));
        }
        Ok(())
    }

    /// Writes all values. On failure it writes none.
    pub(crate) fn set(self, name: &str, values: &[T]) -> Result<()> {
        self.check(name, values.len())?;
        if let Some(to) = self.to {
            for (i, &value) in values.iter().enumerate() {
                // SAFETY: `i` is below the capacity by the check, so by the constructor's contract this element is writable.
                unsafe { to.add(i).write_unaligned(value) };
            }
        }
        Ok(())
    }
}
