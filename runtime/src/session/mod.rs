//! The composition root: [`Engine`] is a loaded model, [`Session`] one sequence of tokens with its KV cache,
//! and [`Chat`] a conversation in a session.
//!
//! Only this module imports all others. It prints nothing, reads no environment variables, and starts no
//! thread that outlives its engine.

mod batch;
mod calibrate;
mod channels;
mod chat;
mod dense;
mod devices;
mod engine;
mod event;
mod failover;
mod generate;
mod generation;
mod guided;
mod info;
mod listener;
mod memory;
mod next;
mod options;
mod parts;
mod plan;
mod processor;
mod saved;
mod shape;
mod stop;
mod streaming;
mod tensors;
mod timeline;
mod together;
mod wording;

pub use crate::model::tokens::SpecialTokens;
pub use batch::{Batch, BatchStats, Ended};
pub use calibrate::{CalibrateOptions, Keep, calibrate, calibrate_by_itself, calibrate_tokens};
pub use chat::{Chat, Overflow};
pub use devices::{Device, devices};
pub use engine::Engine;
pub use event::{Event, GenerateOptions, Outcome, Reply, StopReason};
pub use generate::Events;
pub use info::ModelInfo;
pub use memory::TrimLevel;
pub use options::{BackendChoice, EngineOptions, StreamingOptions};
pub use plan::{LevelFit, MemoryPlan, RefinementPlan, TokenWork};
pub use timeline::{Session, SessionOptions};
