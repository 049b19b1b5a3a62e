//! The functions of `gpu.rs` for a build without GPU kernels: there is no GPU.

use super::{Adapter, Needs, Processor};
use crate::error::{Error, Result};
use crate::kernels::Uses;
use crate::kernels::cpu::{CpuBackend, ScratchShape};
use crate::quant::Matrix;
use crate::session::options::EngineOptions;

fn absent() -> Error {
    Error::Device("this build has no GPU kernels (feature `gpu`)".into())
}

/// # Errors
/// `Device`: this build has no GPU kernels.
pub(super) fn present() -> Result<()> {
    Err(absent())
}

/// # Errors
/// Always. It gives no reason, because the user could do nothing about it.
pub(super) fn strongest() -> std::result::Result<(Adapter, String), Option<&'static str>> {
    Err(None)
}

/// # Errors
/// As [`present`].
pub(super) fn supports(_: &Uses) -> Result<()> {
    present()
}

pub(super) fn kv_bytes(places: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
    CpuBackend::kv_bytes(places, heads, dims, single)
}

pub(super) fn scratch_bytes(shape: &ScratchShape, _: usize, _: usize) -> usize {
    CpuBackend::scratch_bytes(shape)
}

pub(super) fn matrix_bytes(m: &Matrix) -> usize {
    m.bytes()
}

/// # Errors
/// As [`present`].
pub(super) fn open(_: Adapter, _: &EngineOptions, _: &Needs) -> Result<Box<dyn Processor>> {
    Err(absent())
}
