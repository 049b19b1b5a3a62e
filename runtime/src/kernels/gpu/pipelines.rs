//! Shader modules for the driver's compiler, and a cache of compiled kernels between runs. The cache needs
//! support by the adapter (Vulkan) and a folder: it has one file per adapter, driver and set of kernels. It
//! is written only on request; a damaged or foreign file is ignored.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The beginning of a file; the last byte is the format's version.
const MAGIC: [u8; 8] = *b"dollopP\x01";

/// The longest file that is read.
const MAX_BYTES: u64 = 64 << 20;

pub(super) struct Pipelines {
    pub(super) cache: wgpu::PipelineCache,
    path: PathBuf,
    identity: String,
    /// Bytes that were read from the file when it was opened.
    read: u64,
    /// The data in the file.
    saved: Vec<u8>,
    /// Kernels that were compiled until the last call of [`Pipelines::save`].
    compiled: u64,
}

impl Pipelines {
    /// Opens the cache of `folder` for this adapter; `None` if the device has no pipeline cache.
    pub(super) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<Pipelines> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let identity = identity(info)?;
        let name = format!("kernels-{:08x}.bin", crc32fast::hash(identity.as_bytes()));
        let path = folder.join(name);
        let saved = read(&path).and_then(|file| contents(&file, &identity)).unwrap_or_default();
        let (cache, saved) = match cache(device, &saved) {
            Some(cache) => (cache, saved),
            None => (cache(device, &[])?, Vec::new()),
        };
        Some(Pipelines { cache, path, identity, read: saved.len() as u64, saved, compiled: 0 })
    }

    /// Bytes that were read from the file when it was opened.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read
    }

    /// Writes the current cache if kernels were compiled since the last call, and the file does not hold them yet.
    /// `compiled` counts the kernels so far. The write is atomic: to another file, which is then renamed.
    ///
    /// # Errors
    /// `Io`, once: the next call tries again only after more kernels were compiled.
    pub(super) fn save(&mut self, compiled: u64) -> Result<bool> {
        if std::mem::replace(&mut self.compiled, compiled) == compiled {
            return Ok(false);
        }
        let Some(data) = self.cache.get_data().filter(|data| *data != self.saved) else { return Ok(false) };
        let failed = |e| Error::io(&self.path, e);
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // A different name per process, since two may write at the same time.
        let partial = self.path.with_extension(format!("partial-{}", std::process::id()));
        let written = fs::write(&partial, wrap(&data, &self.identity));
        if let Err(e) = written.and_then(|()| fs::rename(&partial, &self.path)) {
            // If removing it fails as well, the first error is returned.
            let _ = fs::remove_file(&partial);
            return Err(failed(e));
        }
        self.saved = data;
        Ok(true)
    }
}

/// Compiles a kernel's WGSL without the loop bounds that wgpu would add: a counter in every loop, which keeps
/// compilers from unrolling.
pub(super) fn module(device: &wgpu::Device, source: String, entry: &str) -> wgpu::ShaderModule {
    let module =
        wgpu::ShaderModuleDescriptor { label: Some(entry), source: wgpu::ShaderSource::Wgsl(source.into()) };
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..Default::default() };
    // SAFETY: kernels must have no endless loop. They are this crate's own (`dollop-shaders`), and each of
    // their loops counts, in steps of at least one, to a constant or to a parameter, which the host writes:
    // no value that is read from a buffer bounds a loop or is added to a counter. All other checks stay on.
    unsafe { device.create_shader_module_trusted(module, checks) }
}

/// A cache initialised with `data`, or empty.
fn cache(device: &wgpu::Device, data: &[u8]) -> Option<wgpu::PipelineCache> {
    let data = Some(data).filter(|data| !data.is_empty());
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let how = wgpu::PipelineCacheDescriptor { label: Some("kernels"), data, fallback: true };
    // SAFETY: data must come from `PipelineCache::get_data`. It does: `contents` took it from a file with the
    // right checksum that names this adapter, its driver's version and these kernels, so `Pipelines::save` wrote
    // it for this device. A driver whose format changed without a new version rejects the data itself, as does
    // wgpu. Forging a file needs write access to the folder, which the program trusts like its own code.
    let cache = unsafe { device.create_pipeline_cache(&how) };
    pollster::block_on(scope.pop()).is_none().then_some(cache)
}

/// The adapter, driver and kernels for which a file is valid.
fn identity(info: &wgpu::AdapterInfo) -> Option<String> {
    let mut kernels = crc32fast::Hasher::new();
    dollop_shaders::SHADERS.iter().flat_map(|s| s.source).for_each(|part| kernels.update(part.as_bytes()));
    let adapter = wgpu::util::pipeline_cache_key(info)?;
    let (name, driver, version) = (&info.name, &info.driver, &info.driver_info);
    Some(format!("{adapter}\n{name}\n{driver}\n{version}\n{:08x}", kernels.finalize()))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut file = Vec::new();
    fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut file).ok()?;
    Some(file)
}

/// The format of a file: magic, checksum of the rest, length of the identity, identity, data.
fn wrap(data: &[u8], identity: &str) -> Vec<u8> {
    let length = (identity.len() as u32).to_le_bytes();
    let rest = [&length, identity.as_bytes(), data].concat();
    [&MAGIC, &crc32fast::hash(&rest).to_le_bytes()[..], &rest].concat()
}

/// The data of a file that is intact and for `identity`.
fn contents(file: &[u8], identity: &str) -> Option<Vec<u8>> {
    let (sum, rest) = file.strip_prefix(&MAGIC)?.split_first_chunk()?;
    if u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk()?;
    let (theirs, data) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (theirs == identity.as_bytes()).then(|| data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_file_of_the_same_identity_is_taken() {
        let file = wrap(b"compiled", "this adapter");
        assert_eq!(contents(&file, "this adapter").unwrap(), b"compiled");
        assert_eq!(contents(&file, "another"), None);
        for len in 0..file.len() {
            assert_eq!(contents(&file[..len], "this adapter"), None, "cut to {len}");
        }
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut damaged = file.clone();
                damaged[at] ^= 1 << bit;
                assert_eq!(contents(&damaged, "this adapter"), None, "bit {bit} of byte {at}");
            }
        }
    }
}
