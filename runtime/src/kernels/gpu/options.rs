//! How a GPU is opened, and what may be kept on it.

use crate::kernels::GpuVariants;
use crate::quant::Level;
use std::path::PathBuf;

/// How a [`super::GpuBackend`] is made.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Which of [`super::adapters`]; by default the first usable one.
    pub adapter: Option<usize>,
    /// Keys and values in single precision: the reference. Otherwise in half.
    pub kv_single: bool,
    /// Bytes for routed experts; by default as many as are used.
    pub expert_bytes: Option<u64>,
    /// Layers with routed experts.
    pub routed_layers: usize,
    /// The highest level that routed experts are read at.
    pub level: Level,
    /// Of every layer, how many experts may have one plane more ([`crate::kernels::Backend::refine`]).
    pub refinements: usize,
    /// A folder in which compiled kernels are kept ([`super::GpuBackend::save_pipelines`]); by default none.
    pub pipelines: Option<PathBuf>,
    /// Variants of kernels that may be used.
    pub variants: GpuVariants,
    /// Time every kernel ([`crate::telemetry::GpuStats::kernels`]).
    pub clock: bool,
    /// Bytes that kernels read from one buffer at most, where that is to be less than the adapter allows.
    pub binding_bytes: Option<u64>,
    /// Workgroups of a dispatch in one dimension at most, where they are to be fewer than every adapter allows.
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
