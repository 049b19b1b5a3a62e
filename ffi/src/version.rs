//! The version of this library and of its C ABI.

use std::ffi::c_char;

/// Version of the interface in this header. It increases if the meaning or layout of an existing item changes, but not for
/// new functions, new statuses, or new fields at the end of a struct. At start, compare it with `dollop_abi_version()`.
pub const DOLLOP_ABI_VERSION: u32 = 1;

/// The `DOLLOP_ABI_VERSION` of the loaded library. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_abi_version() -> u32 {
    DOLLOP_ABI_VERSION
}

/// The library's version, such as "0.1.0". Any thread. The text is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
