//! The version of this library, and of its C ABI.

use std::ffi::c_char;

/// Version of the interface in this header. It grows when something existing changes its meaning or layout; new functions,
/// statuses and fields at the end of structs do not change it. Compare with `dollop_abi_version()` at start.
pub const DOLLOP_ABI_VERSION: u32 = 1;

/// `DOLLOP_ABI_VERSION` of the library that is loaded. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_abi_version() -> u32 {
    DOLLOP_ABI_VERSION
}

/// The library's version, such as "0.1.0". Any thread; the text is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn dollop_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
