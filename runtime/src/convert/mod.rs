//! Import.
pub mod source;
