//! Dollop runs Mixture-of-Experts language models.
//!
//! [`convert::convert`] makes a Dollop file of a foreign model; [`Engine::open`] opens it; [`Engine::session`] gives a
//! timeline with its KV cache, and [`Chat`] holds a conversation on one.
// Rooms' headers point at their own private files: they are for who reads the source.
#![allow(rustdoc::private_intra_doc_links)]

mod bytes;
mod cache;
pub mod convert;
mod error;
pub mod experts;
pub mod format;
pub mod inspect;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod sampler;
pub mod sched;
mod session;
pub mod store;
mod telemetry;
pub mod template;
pub mod tokenizer;

pub use bytes::Bytes;
pub use error::{Error, Result};
pub use model::routing::Routing;
pub use session::{
    BackendChoice, CalibrateOptions, Chat, Device, Engine, EngineOptions, Event, Events, GenerateOptions,
    Keep, LevelFit, MemoryPlan, ModelInfo, Outcome, Overflow, RefinementPlan, Reply, Session, SessionOptions,
    SpecialTokens, StopReason, StreamingOptions, TrimLevel, calibrate, calibrate_tokens, devices,
};
#[doc(hidden)]
pub use telemetry::GpuFault;
pub use telemetry::{CancelToken, GpuKernelTime, GpuStats, Progress, StreamStats, Trace, Track};
