//! Dollop runs Mixture-of-Experts language models, even if they are larger than the device's memory.
//!
//! [`Engine::open`] opens a model. [`Engine::session`] creates a sequence of tokens with its KV cache, and a
//! [`Chat`] holds a conversation in one. [`Engine::plan`] says how a memory budget would be spent, before
//! anything is loaded.
//!
//! ```no_run
//! use dollop::{Chat, Engine, EngineOptions, Event, GenerateOptions, Overflow, SessionOptions};
//!
//! # fn main() -> dollop::Result<()> {
//! let engine = Engine::open("model.gguf", &EngineOptions::default().with_memory(2 << 30).with_cache("models"))?;
//! let mut chat = Chat::new(engine.session(SessionOptions::default())?, None, Overflow::Slide)?;
//! let options = GenerateOptions::default().with_sampling(engine.sampling().clone());
//! let mut answer = String::new();
//! for event in chat.stream("Hello!", &options)? {
//!     if let Event::Token { text, .. } | Event::Rest { text } = event? {
//!         answer.push_str(&text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Threads.** All threads may share an engine. Only one thread at a time may use a session or a chat.
//!
//! **Options** start from `Default`. Change them with their `with_` methods or field by field. Later versions
//! may add fields to options, plans, statistics and events.
//!
//! **Logging** uses the `log` crate. The library itself prints nothing.
// Module docs link to private items, for readers of the source.
#![allow(rustdoc::private_intra_doc_links)]

// A wrong size deep in a model would be worse than a failed build.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("Dollop needs a 64-bit target: it maps whole models, and 32 bits cannot address them");
#[cfg(not(target_endian = "little"))]
compile_error!("Dollop needs a little-endian target: it reads weights where a model file is mapped");

mod bytes;
mod cache;
pub mod convert;
mod error;
mod experts;
mod format;
mod grammar;
/// For the command line: an app learns of a model by [`Engine::info`] and [`Engine::plan`].
#[doc(hidden)]
pub mod inspect;
mod kernels;
mod model;
mod quant;
pub mod sampler;
mod sched;
mod session;
mod store;
mod telemetry;
pub mod template;
pub mod tokenizer;
pub mod tools;

pub use error::{Error, Result};
pub use grammar::Constraint;
pub use kernels::{GpuInputs, GpuVariants};
pub use model::routing::Routing;
pub use quant::Level;
pub use sched::Precision;
pub use session::{
    BackendChoice, Chat, Device, Engine, EngineOptions, Event, Events, GenerateOptions, LevelFit, MemoryPlan,
    ModelInfo, Outcome, Overflow, RefinementPlan, Reply, Session, SessionOptions, SpecialTokens, StopReason,
    StreamingOptions, TrimLevel, devices,
};
/// For the command line: calibrating takes hours, which no app has.
#[doc(hidden)]
pub use session::{CalibrateOptions, calibrate, calibrate_by_itself, calibrate_tokens};
pub use telemetry::{CancelToken, GpuKernelTime, GpuStats, Progress, StreamStats};

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Internals for this project's tests, benchmarks, bindings and command line. Applications should not use
/// them: they may change in any version.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internal {
    pub use crate::bytes::Bytes;
    pub use crate::session::{Batch, BatchStats, Ended, Keep, TokenWork};
    pub use crate::telemetry::{GpuFault, Trace, Track};

    pub mod experts {
        pub use crate::experts::*;
    }
    pub mod format {
        pub use crate::format::*;
    }
    pub mod grammar {
        pub use crate::grammar::*;
    }
    pub mod kernels {
        pub use crate::kernels::*;
    }
    pub mod model {
        pub use crate::model::*;
    }
    pub mod quant {
        pub use crate::quant::*;
    }
    pub mod sched {
        pub use crate::sched::*;
    }
    pub mod store {
        pub use crate::store::*;
    }
}
