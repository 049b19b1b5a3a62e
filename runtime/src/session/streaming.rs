//! Opens the streaming of experts: where they lie in the file, how the file is best read, the cache that the plan allows.

use super::engine::EngineOptions;
use super::parts::Parts;
use super::plan::MemoryPlan;
use crate::error::Result;
use crate::experts::LayerExperts;
use crate::model::file::NestedFile;
use crate::sched::{StreamOptions, Streamer};
use crate::store::{Arena, FileStorage, Storage};
use std::path::Path;
use std::sync::Arc;

/// Slabs that are read to find out how the file is best read: enough for a clear answer, a few milliseconds' worth.
const PROBES: usize = 8;

/// Where the experts of every layer lie.
pub(super) fn tables(file: &NestedFile, layers: usize) -> Result<Vec<Option<LayerExperts>>> {
    (0..layers).map(|layer| file.layer_experts(layer)).collect()
}

/// The streamer that `plan` allows.
pub(super) fn open(
    path: &Path,
    file: &NestedFile,
    tables: Vec<Option<LayerExperts>>,
    parts: &Parts,
    plan: &MemoryPlan,
    options: &EngineOptions,
) -> Result<Streamer> {
    let s = &options.streaming;
    let storage: Arc<dyn Storage> = match &s.storage {
        Some(storage) => storage.clone(),
        None => Arc::new(measured(path, &tables)?),
    };
    let how = StreamOptions {
        precision: parts.precision(options),
        cache_bytes: usize::try_from(plan.expert_bytes).unwrap_or(usize::MAX),
        lanes: s.lanes,
        overlap: s.overlap,
        verify: s.verify,
        half_life: s.half_life,
        order: s.order,
        refinement_bytes: s.refinement_bytes,
    };
    let granule = file.directory().gguf.alignment.next_power_of_two() as usize;
    let top_k = parts.config.router.map_or(1, |r| r.top_k);
    Streamer::new(path.to_path_buf(), storage, tables, granule, top_k, how, s.trace.clone())
}

/// The file, read in the way that proves faster on slabs spread over it.
fn measured(path: &Path, tables: &[Option<LayerExperts>]) -> Result<FileStorage> {
    let routed: Vec<&LayerExperts> = tables.iter().flatten().collect();
    let probe = |i: usize| {
        let table = routed.get(i * routed.len() / PROBES)?;
        let slabs = &table.planes[0];
        let expert = i * 7 % table.count();
        Some((slabs.offset + (expert * slabs.stride) as u64, slabs.stride))
    };
    let mut probes: Vec<(u64, usize)> = (0..PROBES).filter_map(probe).collect();
    // The two halves are read in different ways: both should be spread over the file.
    probes.sort_by_key(|&(offset, _)| (offset >> 20) % 2);
    let longest = probes.iter().map(|p| p.1).max().unwrap_or(0);
    let arena = Arena::new(longest, 4096)?;
    let mut scratch = arena.alloc(longest).expect("the arena is as long");
    Ok(FileStorage::open_measured(path, &probes, &mut scratch)?.0)
}
