//! What models can be computed on here.

use super::options::BackendChoice;
use crate::kernels::cpu::Isa;

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// What to put in [`EngineOptions::backend`](super::EngineOptions::backend) for it.
    pub backend: BackendChoice,
    /// What it calls itself; of the CPU, the instruction set that is used.
    pub name: String,
    /// Vulkan, Metal or Dx12; empty for the CPU.
    pub api: String,
    /// The driver and its version; empty for the CPU.
    pub driver: String,
    /// Whether it is a GPU that the CPU does the work of.
    pub software: bool,
    /// What it lacks to compute models, if anything.
    pub missing: Option<String>,
    /// The largest piece of memory that a GPU's kernels can read, in bytes.
    pub max_binding_bytes: Option<u64>,
}

/// The CPU, and behind it the GPUs of this machine, the strongest kind first. Asking GPUs for themselves loads their drivers, which
/// may take a second.
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
