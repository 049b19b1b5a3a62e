//! Adapters, and a device opened on one: limits, memory, errors.
//!
//! wgpu reports most errors through a callback, several calls later. The first is stored ([`Device::check`]) and
//! returned at the next read-back or allocation as [`Error::Device`]. A driver's failure never panics here.

mod staging;

use super::pipelines::Pipelines;
use super::{GpuOptions, variants};
use crate::error::{Error, Result};
use crate::kernels::{GpuInputs, GpuVariants};
use crate::telemetry::GpuFault;
pub(super) use staging::STAGED_BYTES;
use staging::Staging;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// A GPU, or a software adapter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AdapterInfo {
    /// Its index in the list of adapters.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub api: String,
    /// The driver and its version.
    pub driver: String,
    /// Whether it is a software adapter, which runs on the CPU.
    pub software: bool,
    /// The features that kernels need and the adapter lacks; `None` if kernels can run.
    pub missing: Option<String>,
    /// The largest buffer that a kernel can read, in bytes.
    pub max_binding_bytes: u64,
    /// The smallest and the largest subgroup size, if kernels can use subgroups.
    pub subgroups: Option<[u32; 2]>,
    /// Whether kernels can compute in half precision.
    pub f16: bool,
}

impl AdapterInfo {
    /// Reduces variants of kernels to those that the adapter supports.
    pub fn of(&self, variants: GpuVariants) -> GpuVariants {
        GpuVariants {
            subgroups: variants.subgroups && self.subgroups.is_some(),
            inputs: match variants.inputs {
                GpuInputs::Auto if !self.software && ["Vulkan", "Dx12"].contains(&&*self.api) => {
                    GpuInputs::Bytes
                }
                GpuInputs::Auto => GpuInputs::Single,
                GpuInputs::Half if !self.f16 => GpuInputs::Single,
                inputs => inputs,
            },
        }
    }
}

/// The process's only instance: some drivers, such as NVIDIA's, fail to load after being loaded and unloaded
/// many times.
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut how = wgpu::InstanceDescriptor::new_without_display_handle();
        how.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        // No validation layers: they are for driver developers, and the library does not read the environment.
        how.flags = wgpu::InstanceFlags::empty();
        wgpu::Instance::new(how)
    })
}

fn found() -> Vec<wgpu::Adapter> {
    let all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    let rank = |a: &wgpu::Adapter| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let mut all = all;
    all.sort_by_key(rank);
    all
}

/// Whether there may be a hardware GPU. Loading a driver only to find a software adapter takes time and
/// memory, and some drivers write to standard error.
pub(crate) fn worth_asking() -> bool {
    // On Linux every GPU has a device node: Mesa's drivers, NVIDIA's, WSL's, and phones' own.
    const NODES: [&str; 5] = ["/dev/dri", "/dev/nvidiactl", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0"];
    !cfg!(target_os = "linux") || NODES.iter().any(|node| std::path::Path::new(node).exists())
}

fn describe(index: usize, adapter: &wgpu::Adapter) -> AdapterInfo {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let missing = missing(adapter.features(), &limits);
    let subgroups = variants::subgroups(adapter.features(), &info);
    AdapterInfo {
        index,
        name: info.name,
        api: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        software: info.device_type == wgpu::DeviceType::Cpu,
        missing,
        max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        subgroups,
        f16: adapter.features().contains(wgpu::Features::SHADER_F16),
    }
}

/// Limits that every kernel fits.
const IMMEDIATE_BYTES: u32 = 128;
const STORAGE_BUFFERS: u32 = 8;
const WORKGROUP_BYTES: u32 = 16 << 10;

/// The most workgroups of a dispatch in one dimension.
const GROUPS: u32 = 65_535;

/// The limits of an opened device: buffers as large as the adapter allows, otherwise exactly what kernels
/// need. So a kernel that needs more fails on every machine, not just on a small one.
fn needed(limits: wgpu::Limits) -> wgpu::Limits {
    wgpu::Limits {
        max_immediate_size: IMMEDIATE_BYTES,
        max_storage_buffers_per_shader_stage: STORAGE_BUFFERS,
        max_compute_invocations_per_workgroup: dollop_shaders::WORKGROUP,
        max_compute_workgroup_size_x: dollop_shaders::WORKGROUP,
        max_compute_workgroup_storage_size: WORKGROUP_BYTES,
        max_compute_workgroups_per_dimension: GROUPS,
        ..limits
    }
}

/// The features and limits that kernels need and the adapter lacks.
fn missing(features: wgpu::Features, has: &wgpu::Limits) -> Option<String> {
    if !features.contains(wgpu::Features::IMMEDIATES) {
        return Some("immediates (push constants)".to_owned());
    }
    let needs = needed(has.clone());
    let most = |get: fn(&wgpu::Limits) -> u32, what: &str| {
        (get(has) < get(&needs)).then(|| format!("{} {what} (it has {})", get(&needs), get(has)))
    };
    most(|l| l.max_immediate_size, "bytes of immediates")
        .or_else(|| most(|l| l.max_storage_buffers_per_shader_stage, "storage buffers"))
        .or_else(|| most(|l| l.max_compute_invocations_per_workgroup, "invocations in a workgroup"))
        .or_else(|| most(|l| l.max_compute_workgroup_size_x, "invocations in a workgroup's row"))
        .or_else(|| most(|l| l.max_compute_workgroup_storage_size, "bytes of workgroup memory"))
        .or_else(|| most(|l| l.max_compute_workgroups_per_dimension, "workgroups in a dispatch"))
}

/// The longest wait for the device. Any chunk of a prompt takes less, and drivers stop a hanging kernel
/// earlier. A longer wait would never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// The factor for software adapters, which are slower by more than this and rarely hang.
const SOFTWARE_PATIENCE: u32 = 20;

/// The features that timing kernels needs.
pub(super) fn clock_features() -> wgpu::Features {
    wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
}

/// The adapters of this machine, the most capable kind first: discrete, integrated, virtual, software.
pub fn adapters() -> Vec<AdapterInfo> {
    found().iter().enumerate().map(|(i, a)| describe(i, a)).collect()
}

/// Memory on the device.
pub(super) struct Memory {
    pub(super) buffer: wgpu::Buffer,
    /// Unique among all memory that the device has ever had.
    pub(super) id: u64,
    bytes: u64,
    shared: Arc<Shared>,
}

/// State that outlives a borrow of the device.
#[derive(Default)]
struct Shared {
    fault: Mutex<Option<String>>,
    /// Ids of freed memory.
    gone: Mutex<Vec<u64>>,
    held: AtomicU64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

/// An open device.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: AdapterInfo,
    /// Variants of kernels in use.
    pub(super) variants: GpuVariants,
    /// Largest binding, in bytes.
    pub(super) max_binding: u64,
    /// The most workgroups of a dispatch in one dimension.
    pub(super) max_groups: usize,
    shared: Arc<Shared>,
    ids: AtomicU64,
    /// Compiled kernels of earlier runs and of this one.
    pipelines: Mutex<Option<Pipelines>>,
    /// Uploads in flight.
    pub(super) staging: Mutex<Staging>,
    patience: Mutex<Duration>,
}

impl Device {
    /// Opens the requested adapter, or the first usable one, with the compiled kernels of a folder and those
    /// variants that the adapter supports.
    ///
    /// # Errors
    /// `Device` if there is no adapter, or it cannot run the kernels.
    pub(super) fn open(options: &GpuOptions) -> Result<Device> {
        let kept = options.pipelines.as_deref();
        let all = found();
        let infos: Vec<AdapterInfo> = all.iter().enumerate().map(|(i, a)| describe(i, a)).collect();
        let chosen = match options.adapter {
            Some(i) => infos.get(i).ok_or_else(|| {
                Error::Device(format!("there is no adapter {i}; this machine has {}", infos.len()))
            })?,
            None => infos.iter().find(|i| i.missing.is_none()).or(infos.first()).ok_or_else(|| {
                Error::Device("this machine has no adapter (Vulkan, Metal or DirectX 12)".into())
            })?,
        };
        if let Some(missing) = &chosen.missing {
            return Err(Error::Device(format!("{}: the adapter lacks {missing}", chosen.name)));
        }
        let adapter = &all[chosen.index];
        let keeping = match kept {
            Some(_) => adapter.features() & wgpu::Features::PIPELINE_CACHE,
            None => wgpu::Features::empty(),
        };
        let variants = chosen.of(options.variants);
        let clock =
            if options.clock { adapter.features() & clock_features() } else { wgpu::Features::empty() };
        let open = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("dollop"),
            required_features: wgpu::Features::IMMEDIATES | keeping | clock | variants::features(variants),
            required_limits: needed(adapter.limits()),
            ..Default::default()
        });
        let (device, queue) =
            pollster::block_on(open).map_err(|e| Error::Device(format!("{}: {e}", chosen.name)))?;
        let shared = Arc::new(Shared::default());
        let note = |shared: &Shared, what: String| {
            shared.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        };
        let faults = shared.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&faults, e.to_string())));
        let faults = shared.clone();
        device.set_device_lost_callback(move |_, why| note(&faults, format!("the device was lost: {why}")));
        let pipelines = kept.and_then(|folder| Pipelines::open(&device, &adapter.get_info(), folder));
        let max_binding = chosen.max_binding_bytes.min(u64::from(u32::MAX)) & !255;
        Ok(Device {
            device,
            queue,
            info: chosen.clone(),
            variants,
            max_binding,
            max_groups: GROUPS as usize,
            shared,
            pipelines: Mutex::new(pipelines),
            ids: AtomicU64::new(1),
            staging: Mutex::default(),
            patience: Mutex::new(PATIENCE * if chosen.software { SOFTWARE_PATIENCE } else { 1 }),
        })
    }

    /// # Errors
    /// `Device` if anything has failed since the device was opened.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(what) => Err(Error::Device(what.clone())),
            None => Ok(()),
        }
    }

    /// The cache of compiled kernels.
    pub(super) fn pipelines(&self) -> MutexGuard<'_, Option<Pipelines>> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores an error of an operation that returns nothing.
    pub(super) fn fail(&self, what: impl Into<String>) {
        self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what.into());
    }

    /// For tests: fails like a driver.
    pub(super) fn suffer(&self, fault: GpuFault) {
        use wgpu::BufferUsages as U;
        match fault {
            GpuFault::Lost => self.device.destroy(),
            GpuFault::Hung => *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO,
            // Reported like an error of an operation that returns nothing.
            GpuFault::OutOfMemory => self.fail("out of memory: no 1 MB for a test"),
            GpuFault::Invalid => {
                // Creating this buffer fails: no backend can map a buffer that kernels bind.
                let usage = U::MAP_READ | U::MAP_WRITE | U::STORAGE;
                let what = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
                drop(self.device.create_buffer(&what));
            }
        }
    }

    /// Zeroed memory of `bytes` bytes that kernels can read and write.
    ///
    /// # Errors
    /// `Device` if there is not enough memory, or no kernel could bind it.
    pub(super) fn memory(&self, bytes: u64, what: &str) -> Result<Memory> {
        use wgpu::BufferUsages as U;
        if bytes > self.max_binding {
            return Err(Error::Device(format!(
                "{what} takes {} MB, and this adapter's kernels can read {} MB at once",
                bytes.div_ceil(1 << 20),
                self.max_binding >> 20
            )));
        }
        self.raw(bytes.max(16).next_multiple_of(16), U::STORAGE | U::COPY_DST | U::COPY_SRC, what)
    }

    /// A buffer of any kind.
    pub(super) fn raw(&self, size: u64, usage: wgpu::BufferUsages, what: &str) -> Result<Memory> {
        self.check()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        if pollster::block_on(scope.pop()).is_some() {
            let held = self.held() >> 20;
            return Err(Error::Device(format!(
                "out of memory: no {} MB for {what} beside the {held} MB in use",
                size.div_ceil(1 << 20)
            )));
        }
        self.check()?;
        self.shared.held.fetch_add(size, Ordering::Relaxed);
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        Ok(Memory { buffer, id, bytes: size, shared: self.shared.clone() })
    }

    /// Waits for a submission, or for all submissions.
    ///
    /// # Errors
    /// `Device` if anything has failed since the device was opened, or the device does not answer.
    pub(super) fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.check()?;
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = if patience.is_zero() {
            // `GpuFault::Hung`. Polling late, as on a busy machine, would find a software driver done, so no hang.
            Err(wgpu::PollError::Timeout)
        } else {
            self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(patience) })
        };
        self.check()?;
        match waited {
            Ok(_) => {}
            Err(wgpu::PollError::Timeout) => {
                // Dropping a device waits for it without a timeout, so the device is leaked.
                std::mem::forget((self.device.clone(), self.queue.clone()));
                self.fail(format!("it has not answered for {} s", patience.as_secs()));
            }
            Err(e) => self.fail(format!("waiting for the device: {e}")),
        }
        self.check()
    }

    /// Bytes allocated on the device.
    pub(super) fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Ids of memory freed since the last call.
    pub(super) fn gone(&self) -> Vec<u64> {
        std::mem::take(&mut *self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_lacks_something_is_told_what() {
        let all = wgpu::Features::IMMEDIATES;
        let enough = needed(wgpu::Limits::default());
        assert_eq!(missing(all, &enough), None);
        assert!(missing(wgpu::Features::empty(), &enough).unwrap().contains("immediates"));
        let lacks: [(fn(&mut wgpu::Limits), &str); 6] = [
            (|l| l.max_immediate_size = 64, "128 bytes of immediates (it has 64)"),
            (|l| l.max_storage_buffers_per_shader_stage = 4, "8 storage buffers (it has 4)"),
            (|l| l.max_compute_invocations_per_workgroup = 64, "128 invocations"),
            (|l| l.max_compute_workgroup_size_x = 64, "128 invocations"),
            (|l| l.max_compute_workgroup_storage_size = 8192, "16384 bytes of workgroup memory"),
            (|l| l.max_compute_workgroups_per_dimension = 1024, "65535 workgroups"),
        ];
        for (lower, what) in lacks {
            let mut limits = enough.clone();
            lower(&mut limits);
            let said = missing(all, &limits).unwrap_or_default();
            assert!(said.contains(what), "`{said}` does not say `{what}`");
        }
    }
}
