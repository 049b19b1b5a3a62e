//! Activations and the KV cache on the device.

use super::device::{Device, Memory};
use crate::error::Result;

/// A run of f32 values on the device.
pub struct GpuBuf {
    pub(super) memory: Memory,
    pub(super) len: usize,
}

/// Keys and values of a layer, four dimensions to a cell: keys `[heads, head_dim / 4, capacity]`, so that neighbouring
/// positions are neighbours, and values `[heads, capacity, head_dim / 4]`.
pub struct GpuKv {
    pub(super) keys: Memory,
    pub(super) values: Memory,
    pub(super) capacity: usize,
    pub(super) half: bool,
}

impl GpuKv {
    pub(super) fn new(
        gpu: &Device,
        capacity: usize,
        heads: usize,
        head_dim: usize,
        single: bool,
    ) -> Result<GpuKv> {
        let bytes = Self::bytes(capacity, heads, head_dim, single) as u64 / 2;
        let (keys, values) = (gpu.memory(bytes, "a layer's keys")?, gpu.memory(bytes, "a layer's values")?);
        Ok(GpuKv { keys, values, capacity, half: !single })
    }

    /// Bytes of a cache made by [`Backend::alloc_kv`](crate::kernels::Backend::alloc_kv).
    pub fn bytes(capacity: usize, heads: usize, head_dim: usize, single: bool) -> usize {
        let cell = if single { 16 } else { 8 };
        2 * heads * head_dim.div_ceil(4) * capacity * cell
    }
}
