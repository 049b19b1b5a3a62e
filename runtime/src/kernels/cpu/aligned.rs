//! Memory that begins on a cache line. The allocator usually aligns to 16 bytes only, and then every store of
//! a 64-byte register touches two lines.

use crate::error::{Error, Result};
use bytemuck::Zeroable;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest register.
const LINE: usize = 64;

/// Values whose first address is a multiple of LINE bytes.
#[derive(Default)]
pub struct Aligned<T> {
    /// With spare values, so that the first can be aligned.
    values: Vec<T>,
    first: usize,
    len: usize,
}

impl<T: Zeroable + Copy> Aligned<T> {
    /// Values allocated beyond the requested ones.
    const SPARE: usize = LINE / size_of::<T>() - 1;

    /// Zeroed memory. The system provides its pages when they are first touched.
    pub(super) fn zeroed(len: usize) -> Result<Self> {
        let mut probe = Vec::<T>::new();
        probe.try_reserve_exact(len + Self::SPARE).map_err(|_| {
            let mb = (len * size_of::<T>()) >> 20;
            Error::Invalid(format!("no memory for a buffer of {mb} MB; ask for a smaller context"))
        })?;
        drop(probe);
        let values: Vec<T> = bytemuck::zeroed_vec(len + Self::SPARE);
        // `align_offset` may return `usize::MAX` on some platforms. Alignment affects only speed.
        let first = values.as_ptr().align_offset(LINE).min(Self::SPARE);
        Ok(Aligned { values, first, len })
    }

    /// Room for `len` values, with unspecified contents; never shrinks.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            // Free the old memory before allocating the new: the bounds on scratch count only one of them.
            drop(std::mem::take(&mut self.values));
            *self = Self::zeroed(len).expect("memory for scratch that the plan counted");
        }
    }

    /// Bytes of `len` values.
    pub(super) const fn bytes(len: usize) -> usize {
        (len + Self::SPARE) * size_of::<T>()
    }

    /// Bytes allocated.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.values.capacity() * size_of::<T>()
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.first..][..self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.first..][..self.len]
    }
}

/// Makes `v` exactly `len` long, without the spare capacity of `Vec`'s own growth.
pub(super) fn grow<T: Clone + Default>(v: &mut Vec<T>, len: usize) {
    v.reserve_exact(len.saturating_sub(v.len()));
    v.resize(len, T::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_a_line_and_keeps_what_there_is() {
        for len in [1, 15, 16, 100, 1 << 16] {
            let mut x = Aligned::<f32>::zeroed(len).unwrap();
            assert_eq!((x.as_ptr() as usize % LINE, x.len()), (0, len));
            x[len - 1] = 1.0;
            x.reserve(len / 2);
            assert_eq!((x.len(), x[len - 1]), (len, 1.0));
            x.reserve(2 * len);
            assert_eq!((x.as_ptr() as usize % LINE, x.len(), x[len - 1]), (0, 2 * len, 0.0));
            assert_eq!(x.held(), Aligned::<f32>::bytes(2 * len));
        }
        assert!(Aligned::<f32>::zeroed(usize::MAX / 8).is_err());
    }
}
