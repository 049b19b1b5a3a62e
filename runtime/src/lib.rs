//! Dollop runs Mixture-of-Experts language models that may be larger than the memory of the device in hand.
//!
//! [`Engine::open`] opens a model, [`Engine::session`] gives a timeline of it with its KV cache, and a [`Chat`] holds a
//! conversation on one. [`Engine::plan`] says what a budget of memory would be spent on before anything is loaded.
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
//! **Threads.** An engine is shared by all threads; a session or chat is used by one at a time. **Options** are made by
//! `Default` and changed by their `with_` methods or field by field; fields may be added to them, and to plans, statistics and
//! events. **Logging** goes to the facade `log`; the library prints nothing.
// Rooms' headers point at their own private files: they are for who reads the source.
#![allow(rustdoc::private_intra_doc_links)]

// Wrong sizes in the middle of a model would be worse than no program.
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
    BackendChoice, Batch, BatchStats, CalibrateOptions, Chat, Device, Ended, Engine, EngineOptions, Event,
    Events, GenerateOptions, LevelFit, MemoryPlan, ModelInfo, Outcome, Overflow, RefinementPlan, Reply,
    Session, SessionOptions, SpecialTokens, StopReason, StreamingOptions, TrimLevel, calibrate,
    calibrate_by_itself, calibrate_tokens, devices,
};
pub use telemetry::{CancelToken, GpuKernelTime, GpuStats, Progress, StreamStats};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// What the library is made of, for its own tests, benchmarks, bindings and command line. No program should use it: it changes from
/// one version to the next.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod internal {
    pub use crate::bytes::Bytes;
    pub use crate::session::Keep;
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
