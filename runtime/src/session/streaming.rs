//! Opens the streamer or the refiner: finds the experts in the file, measures how to read it, and creates the
//! cache or the slots of the plan.

use super::dense::check_embedding;
use super::engine::Engine;
use super::options::EngineOptions;
use super::parts::{Parts, Streams};
use super::plan::{MemoryPlan, RefinementPlan};
use crate::error::Result;
use crate::experts::{AllResident, LayerExperts, Rows};
use crate::kernels::{Routed, Router};
use crate::model::file::{DenseSums, NestedFile};
use crate::model::weights::EMBEDDING;
use crate::quant::{Level, Matrix};
use crate::sched::{
    DEFAULT_LANES, DeviceOptions, FileRows, Held, RefineOptions, Refiner, StreamOptions, Streamer, Verify,
};
use crate::store::{FileStorage, Place, Reads, Storage};
use std::collections::HashSet;
use std::sync::Arc;

/// The most slabs that are read to measure the ways of reading the file, and the most bytes of each.
const PROBES: usize = 48;

/// The most ways of reading among which they are divided.
const WAYS: usize = 4;
const PROBE_BYTES: usize = 2 << 20;

/// Reads where the experts of every layer are in the file.
pub(super) fn tables(file: &NestedFile, layers: usize) -> Result<Vec<Option<LayerExperts>>> {
    (0..layers).map(|layer| file.layer_experts(layer)).collect()
}

/// Opens the streamer for `plan`, and the reader of embedding rows if the embedding stays in the file.
pub(super) fn open(
    place: &Place,
    file: &NestedFile,
    tables: Vec<Option<LayerExperts>>,
    parts: &Parts,
    plan: &MemoryPlan,
    options: &EngineOptions,
) -> Result<Streams> {
    let s = &options.streaming;
    let storage: Arc<dyn Storage> = match &s.storage {
        Some(storage) => storage.clone(),
        None => Arc::new(measured(place, &tables, s.lanes, s.reads)?),
    };
    let how = StreamOptions {
        precision: parts.precision(options),
        cache_bytes: usize::try_from(plan.expert_bytes).unwrap_or(usize::MAX),
        device: plan.gpu.then(|| DeviceOptions {
            level: parts.device_level(options),
            staging_bytes: usize::try_from(plan.staging_bytes).unwrap_or(usize::MAX),
        }),
        lanes: s.lanes.or(storage.measured().map(|m| m.lanes)).unwrap_or(DEFAULT_LANES),
        overlap: s.overlap,
        verify: s.verify,
        half_life: s.half_life,
        order: s.order,
        refinement_bytes: s.refinement_bytes,
        lookahead: options.routing.lookahead,
    };
    let granule = granule(file);
    let top_k = parts.spec.router().map_or(1, |r| r.top_k);
    match storage.measured() {
        Some(m) => log::debug!(
            "{} lanes of reads ({:?}), which brought {:.0} MB/s when the file was opened",
            how.lanes,
            storage.access(),
            m.bytes_per_second / 1e6
        ),
        None => log::debug!("{} lanes of reads ({:?}), not measured", how.lanes, storage.access()),
    }
    let streamer =
        Streamer::new(place.name().to_path_buf(), storage, tables, granule, top_k, how, s.trace.clone())?;
    let sums = match s.verify {
        Verify::Never => DenseSums::default(),
        Verify::First | Verify::Always => file.dense_sums()?,
    };
    let rows: Option<Arc<dyn Rows>> = match parts.embedding().held() {
        Some(Matrix::Nested(embed)) if plan.unheld_embedding_bytes > 0 => {
            check_embedding(embed, &sums)?;
            let storage: Arc<dyn Storage> = match &s.storage {
                Some(storage) => storage.clone(),
                None => Arc::new(FileStorage::open_scattered(place)?),
            };
            let offset = file.matrix_offset(EMBEDDING)?;
            Some(Arc::new(FileRows::new(place.name(), storage, offset, embed, s.trace.clone())))
        }
        _ => None,
    };
    Ok(Streams { streamer, rows, sums })
}

impl Engine {
    /// The resident planes of every expert, by layer; `None` if these never change. Waits for the
    /// current layer.
    #[doc(hidden)]
    pub fn held_experts(&self) -> Option<Vec<Vec<Held>>> {
        match (self.streamer(), self.refiner()) {
            (Some(streamer), _) => Some(streamer.held()),
            (None, Some(refiner)) => Some(refiner.held()),
            (None, None) => None,
        }
    }

    /// Sets the heat of every expert ([`Streamer::heat`]), and loads the hottest ones at the floor level
    /// until the cache is full. No effect if experts are not streamed.
    ///
    /// # Errors
    /// `Invalid` if `heat` belongs to another model; those of reading, and `Device`.
    #[doc(hidden)]
    pub fn warm_start(&self, heat: &[Vec<f32>]) -> Result<()> {
        let (Some(streamer), Some(router)) = (self.streamer(), self.model().spec.router()) else {
            return Ok(());
        };
        let (processor, Router { experts, top_k, .. }) = (self.processor(), router);
        streamer.warm_start(heat, &mut |layer, hottest| {
            let of = Routed { layer, experts, top_k, tokens: 1, inputs: 0 };
            processor.accelerator().map_or(Ok(()), |gpu| gpu.bring(of, hottest))
        })
    }
}

/// Lanes for reading refinements. A token needs few planes, and they may take as long as the token.
const REFINING_LANES: usize = 2;

/// Opens the refiner, which adds planes to experts that are all resident at `level`, within `plan`.
pub(super) fn refiner(
    place: &Place,
    granule: usize,
    tables: Vec<Option<LayerExperts>>,
    all: AllResident,
    plan: RefinementPlan,
    level: Level,
    options: &EngineOptions,
) -> Result<Refiner> {
    let s = &options.streaming;
    let storage: Arc<dyn Storage> = match &s.storage {
        Some(storage) => storage.clone(),
        None => Arc::new(FileStorage::open(place, true)?),
    };
    let how = RefineOptions {
        level,
        slots: plan.slots,
        lanes: s.lanes.unwrap_or(REFINING_LANES),
        verify: s.verify,
        half_life: s.half_life,
    };
    Refiner::new(place.name().to_path_buf(), storage, tables, all, granule, how, s.trace.clone())
}

/// The alignment of slabs in the file, in bytes.
pub(super) fn granule(file: &NestedFile) -> usize {
    file.directory().gguf.alignment.next_power_of_two() as usize
}

/// Opens the file with the way of reading that measures fastest on slabs spread over it.
fn measured(
    place: &Place,
    tables: &[Option<LayerExperts>],
    lanes: Option<usize>,
    reads: Reads,
) -> Result<FileStorage> {
    let routed: Vec<&LayerExperts> = tables.iter().flatten().collect();
    // Consecutive probes are spread over the file, so that each way of reading gets similar ones.
    let probe = |i: usize| {
        let table = routed.get(i % routed.len().max(1))?;
        let slabs = &table.planes[0];
        let expert = i * 11 % table.count();
        Some((slabs.offset + (expert * slabs.stride) as u64, slabs.stride.min(PROBE_BYTES)))
    };
    let mut probes: Vec<(u64, usize)> = (0..PROBES.min(WAYS * routed.len())).filter_map(probe).collect();
    // No slab is read twice: the second read might come from the disk's cache.
    let mut seen = HashSet::new();
    probes.retain(|p| seen.insert(p.0));
    // The smallest cache holds a base plane per layer. Probing takes no more memory than that.
    FileStorage::open_measured(place, &probes, routed.len(), lanes, reads)
}
