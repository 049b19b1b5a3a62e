//! The transformer: its numbers, its weights, and the walk of a token through them.
//!
//! Assembled from parts chosen by data: a family is a row in [`arch`], everything else comes from the file. This room
//! computes through [`crate::kernels::Backend`] and gets experts through [`crate::experts::ExpertSource`]; it knows
//! neither processors nor storage.

pub mod arch;
pub mod config;
pub mod embedding;
pub mod file;
pub mod forward;
mod history;
pub mod keys;
pub mod rope;
pub mod routing;
pub mod sampling;
pub mod tokens;
pub mod weights;

pub use config::Config;
pub use forward::{Model, State};
pub use weights::{Tensors, Weights};
