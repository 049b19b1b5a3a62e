//! Options for opening a GPU, and for the memory used on it.

use crate::kernels::GpuVariants;
use crate::quant::Level;
use std::path::PathBuf;

/// Options of a [`super::GpuBackend`].
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Index in [`super::adapters`]; by default the first usable one.
    pub adapter: Option<usize>,
    /// Keys and values in single precision, which is the reference; otherwise in half precision.
    pub kv_single: bool,
    /// Bytes for routed experts; by default no limit.
    pub expert_bytes: Option<u64>,
    /// Layers with routed experts.
    pub routed_layers: usize,
    /// The highest level at which routed experts are read.
    pub level: Level,
    /// The most experts of a layer with one more plane ([`crate::kernels::Backend::refine`]).
    pub refinements: usize,
    /// A folder for compiled kernels ([`super::GpuBackend::save_pipelines`]); by default none.
    pub pipelines: Option<PathBuf>,
    /// Variants of kernels that may be used.
    pub variants: GpuVariants,
    /// Time every kernel ([`crate::telemetry::GpuStats::kernels`]).
    pub clock: bool,
    /// The most bytes that kernels read from one buffer, if less than the adapter allows.
    pub binding_bytes: Option<u64>,
    /// The most workgroups of a dispatch in one dimension, if fewer than every adapter allows.
    pub max_groups: Option<usize>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions {
            adapter: None,
            kv_single: false,
            expert_bytes: None,
            routed_layers: 1,
            level: Level::B8,
            refinements: 0,
            pipelines: None,
            variants: GpuVariants::default(),
            clock: false,
            binding_bytes: None,
            max_groups: None,
        }
    }
}
