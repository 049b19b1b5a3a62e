//! The C ABI of Dollop: what `include/dollop.h` declares.
//!
//! Every function is thin: it checks its arguments (`arguments.rs`), finds its handle (`handles.rs`), calls the library, and
//! writes its outputs last (`outputs.rs`), all inside one panic boundary (`boundary.rs`). The header is generated from this
//! crate, so the comments here are written for C: types and functions have their C names.
//!
//! Unsafe code here rests on one contract, which the header states for its callers: a pointer argument is NULL or points to
//! what its type says, for as long as the call lasts. NULL, sizes, numbers, text and handles are checked; a dangling pointer
//! cannot be.
#![allow(unsafe_code, non_camel_case_types)]
// The contract of pointers is the same for all functions; the header and the lines above state it once.
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
