//! Lists the processors of this machine that can compute models.

use super::options::BackendChoice;
use crate::kernels::cpu::Isa;

/// A processor: the CPU or a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// The value of [`EngineOptions::backend`](super::EngineOptions::backend) that selects it.
    pub backend: BackendChoice,
    /// The GPU's name; for the CPU, the instruction set in use.
    pub name: String,
    /// Vulkan, Metal or Dx12; empty for the CPU.
    pub api: String,
    /// The driver and its version; empty for the CPU.
    pub driver: String,
    /// Whether this is a software GPU, which the CPU emulates.
    pub software: bool,
    /// The features it lacks to compute models; `None` if it can.
    pub missing: Option<String>,
    /// The largest buffer that a GPU's kernels can read, in bytes.
    pub max_binding_bytes: Option<u64>,
}

/// Lists the CPU first, then the GPUs, best kind first. Querying GPUs loads their drivers, which may take a
/// second.
pub fn devices() -> Vec<Device> {
    let cpu = Device {
        backend: BackendChoice::Cpu,
        name: Isa::available().last().map_or_else(String::new, ToString::to_string),
        api: String::new(),
        driver: String::new(),
        software: false,
        missing: None,
        max_binding_bytes: None,
    };
    #[cfg(feature = "gpu")]
    let gpus = crate::kernels::gpu::adapters().into_iter().map(|a| Device {
        backend: BackendChoice::Gpu(Some(a.index)),
        name: a.name,
        api: a.api,
        driver: a.driver,
        software: a.software,
        missing: a.missing,
        max_binding_bytes: Some(a.max_binding_bytes),
    });
    #[cfg(not(feature = "gpu"))]
    let gpus = std::iter::empty();
    std::iter::once(cpu).chain(gpus).collect()
}
