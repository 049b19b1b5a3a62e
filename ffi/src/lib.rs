//! The C ABI of Dollop, as `include/dollop.h` declares it.
//!
//! Every function is thin. It checks its arguments (`arguments.rs`), looks up its handle (`handles.rs`), calls the
//! library, and writes its outputs last (`outputs.rs`), all inside one panic boundary (`boundary.rs`). The header is
//! generated from this crate. So its comments are written for C programs: types and functions have their C names.
//!
//! The unsafe code here rests on one contract, which the header gives to callers: a pointer argument is NULL, or points
//! to a value of its type for the whole call. NULL, sizes, numbers, texts and handles are checked; a dangling pointer
//! cannot be detected.
#![allow(unsafe_code, non_camel_case_types)]
// The pointer contract is the same for all functions. The header and the lines above state it once.
#![allow(clippy::missing_safety_doc)]

mod arguments;
mod boundary;
mod chat;
mod devices;
mod engine;
mod file;
mod generate;
mod handles;
mod info;
#[cfg(feature = "jni")]
mod java;
mod log;
mod memory;
mod options;
mod outputs;
mod plan;
mod sampling;
mod saved;
mod session;
mod stats;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod version;
