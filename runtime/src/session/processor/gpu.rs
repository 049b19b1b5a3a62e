//! GPUs, in a build with GPU kernels. `no_gpu.rs` has the same functions for a build without.

use super::on::{Host, On};
use super::{Accelerator, Adapter, Location, Needs, Processor};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::kernels::cpu::ScratchShape;
use crate::kernels::gpu::{GpuBackend, GpuKv, GpuOptions, MAX_TOKENS, adapters, worth_asking};
use crate::kernels::{Backend, Routed, Uses};
use crate::quant::Matrix;
use crate::session::options::EngineOptions;
use crate::telemetry::{GpuFault, GpuStats};

/// # Errors
/// None: this build has GPU kernels.
pub(super) fn present() -> Result<()> {
    Ok(())
}

/// The strongest hardware GPU, with its name.
///
/// # Errors
/// Why there is none.
pub(super) fn strongest() -> std::result::Result<(Adapter, String), Option<&'static str>> {
    let all = if worth_asking() { adapters() } else { Vec::new() };
    match all.iter().find(|a| !a.software && a.missing.is_none()) {
        Some(real) => Ok((Adapter(Some(real.index)), real.name.clone())),
        None if all.is_empty() => Err(Some("no GPU was found")),
        None => Err(Some("no GPU was found but software")),
    }
}

/// # Errors
/// `Device` if the kernels lack an operation of the model.
pub(super) fn supports(uses: &Uses) -> Result<()> {
    GpuBackend::supports(uses).map_err(Error::Device)
}

pub(super) fn kv_bytes(places: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
    GpuKv::bytes(places, heads, dims, single)
}

pub(super) fn scratch_bytes(shape: &ScratchShape, vocab: usize, rope_dims: usize) -> usize {
    GpuBackend::scratch_bytes(shape, vocab, rope_dims)
}

pub(super) fn matrix_bytes(m: &Matrix) -> usize {
    GpuBackend::matrix_bytes(m)
}

pub(super) fn open(adapter: Adapter, options: &EngineOptions, needs: &Needs) -> Result<Box<dyn Processor>> {
    let gpu = GpuBackend::new(&GpuOptions {
        adapter: adapter.0,
        kv_single: needs.kv_single,
        expert_bytes: needs.expert_bytes,
        routed_layers: needs.routed_layers,
        level: needs.level,
        refinements: needs.refinements,
        pipelines: options.pipelines.clone(),
        variants: options.gpu_variants,
        clock: options.gpu_clock,
        binding_bytes: options.gpu_binding_bytes,
        max_groups: None,
    })?;
    log::debug!("GPU: {}", gpu.name());
    Ok(On::boxed(gpu))
}

impl Host for GpuBackend {
    const LOCATION: Location = Location::Gpu;

    fn name(&self) -> String {
        self.name()
    }

    fn threads(&self) -> usize {
        1
    }

    fn accelerator(&self) -> Option<&dyn Accelerator> {
        Some(self)
    }
}

impl Accelerator for GpuBackend {
    fn longest_chunk(&self) -> usize {
        MAX_TOKENS
    }

    fn stats(&self) -> GpuStats {
        self.stats()
    }

    fn save_pipelines(&self) -> Result<bool> {
        self.save_pipelines()
    }

    fn abandon(&self) {
        self.abandon();
    }

    fn failed(&self) -> bool {
        self.failed()
    }

    fn lose_after(&self, submissions: u64, fault: GpuFault) {
        self.lose_after(submissions, fault);
    }

    fn bring_matrices(&self, together: &[&Matrix]) -> Result<()> {
        self.bring_matrices(together)
    }

    fn bring(&self, of: Routed, experts: &[(u32, &Expert)]) -> Result<()> {
        self.bring(of, experts)
    }
}
