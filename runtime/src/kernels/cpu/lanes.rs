//! Sixteen floats in the registers of an instruction set, so that one loop over floats serves all of them.
#![allow(unsafe_code)]

use half::f16;

/// A stored number.
pub(super) trait Cell: Copy + Send + Sync + 'static {
    /// Half precision, or else single.
    const HALF: bool;
}

impl Cell for f16 {
    const HALF: bool = true;
}

impl Cell for f32 {
    const HALF: bool = false;
}

/// Sixteen floats in the registers of an instruction set.
///
/// # Safety
/// For every method: the machine has the instructions, and pointers are valid for 16 numbers.
pub(super) trait Lanes: Copy {
    /// Whether sixteen of these stay in registers together with their operands; otherwise four do.
    const MANY: bool;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load<T: Cell>(at: *const T) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self · x + sum`.
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self;
}
