//! The transformer: its specification, its weights, and the forward pass.
//!
//! A family is one file in [`families`]; everything else comes from the model file's keys. This module
//! computes through [`crate::kernels::Backend`] and gets experts through [`crate::experts::ExpertSource`]. It
//! knows neither processors nor storage.

pub mod embedding;
pub mod families;
pub mod file;
pub mod forward;
mod history;
pub mod keys;
mod marks;
pub mod memory;
pub mod rope;
pub mod routing;
pub mod sampling;
pub mod spec;
mod tensors;
pub mod tokens;
pub mod weights;

pub use forward::{Memory, Model, Scratch};
pub use spec::Spec;
pub use tensors::Tensors;
pub use weights::Weights;
