//! Dollop runs Mixture-of-Experts language models.
#![cfg_attr(not(test), warn(missing_docs))]

mod bytes;
pub mod convert;
mod error;
mod experts;
pub mod format;
pub mod inspect;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod sampler;
mod session;
mod store;
mod telemetry;
pub mod template;
pub mod tokenizer;

pub use bytes::Bytes;
pub use error::{Error, Result};
pub use session::{
    Chat, Engine, EngineOptions, Event, GenerateOptions, ModelInfo, Outcome, Overflow, Session,
    SessionOptions, SpecialTokens, StopReason,
};
pub use telemetry::{CancelToken, Progress};
