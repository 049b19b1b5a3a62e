//! The GPUs of this machine.

use crate::boundary::{Failure, Result, run};
use crate::outputs::{Out, OutArray};
use crate::status::dollop_status::{self, *};
use serde_json::Value;
use std::ffi::c_char;

/// A GPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_device {
    /// The value of `dollop_engine_options.gpu_index` that selects it.
    pub index: u32,
    /// 1 if kernels can run on it.
    pub usable: u32,
    /// 1 for a software GPU, which computes on the CPU.
    pub software: u32,
    /// Always 0.
    pub reserved: u32,
    /// The largest buffer that a kernel can read, in bytes.
    pub max_binding_bytes: u64,
    /// Its name: NUL-terminated UTF-8, cut if longer.
    pub name: [c_char; 128],
    /// Vulkan, Metal or Dx12; NUL-terminated.
    pub api: [c_char; 16],
}

#[cfg(feature = "gpu")]
fn all() -> Vec<(dollop_device, Value)> {
    let adapters = runtime::internal::kernels::gpu::adapters();
    let one = |a: &runtime::internal::kernels::gpu::AdapterInfo| dollop_device {
        index: u32::try_from(a.index).unwrap_or(u32::MAX),
        usable: u32::from(a.missing.is_none()),
        software: u32::from(a.software),
        reserved: 0,
        max_binding_bytes: a.max_binding_bytes,
        name: field(&a.name),
        api: field(&a.api),
    };
    adapters.iter().map(|a| (one(a), serde_json::to_value(a).unwrap_or_default())).collect()
}

#[cfg(not(feature = "gpu"))]
fn all() -> Vec<(dollop_device, Value)> {
    Vec::new()
}

/// A text as a NUL-terminated array, cut at a character boundary.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
pub(crate) fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let mut at = 0;
    for c in text.chars().take_while(|c| *c != '\0') {
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes).as_bytes();
        if at + bytes.len() >= N {
            break;
        }
        for &b in bytes {
            // The same byte, whether `c_char` is signed on this system or not.
            field[at] = b as c_char;
            at += 1;
        }
    }
    field
}

/// Lists the GPUs. Writes their number to `*count`, which may be 0. Writes the GPUs to `devices`, which has room
/// for `capacity` elements, unless it is NULL. Queries the drivers, which may take a second. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_devices(
    devices: *mut dollop_device,
    capacity: usize,
    count: *mut usize,
) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`, for an array of `capacity` and a number.
        let (devices, count) = unsafe { (OutArray::new(devices, capacity), Out::new("count", count)?) };
        let found: Vec<dollop_device> = all().into_iter().map(|(device, _)| device).collect();
        devices.set("devices", &found)?;
        count.set(found.len());
        Ok(())
    })
}

/// The GPUs as a JSON array.
pub(crate) fn json() -> Result<String> {
    let list: Vec<Value> = all().into_iter().map(|(_, value)| value).collect();
    serde_json::to_string(&list).map_err(|e| Failure::new(DOLLOP_OTHER, format!("the devices: {e}")))
}

/// As `dollop_devices`, but with more fields and as a JSON array. Free `*json` with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_devices_json(json: *mut *mut c_char) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`.
        let out = unsafe { Out::new("json", json) }?;
        out.set_text(&self::json()?);
        Ok(())
    })
}
