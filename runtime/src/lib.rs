//! Dollop runs Mixture-of-Experts language models.
#![cfg_attr(not(test), warn(missing_docs))]

mod bytes;
pub mod convert;
mod error;
mod experts;
pub mod format;
pub mod kernels;
pub mod model;
pub mod quant;
mod store;
mod telemetry;

pub use bytes::Bytes;
pub use error::{Error, Result};
pub use telemetry::{CancelToken, Progress};
