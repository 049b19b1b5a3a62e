//! Experts served from storage through a cache that keeps the most valuable planes.
//!
//! [`Streamer`] implements the trait [`ExpertSource`]. A serving runs on the model's thread. It decides each
//! expert's bits, evictions and reads, and submits the reads to the lanes. It may prefetch for the next
//! layer. It then computes the experts that are resident, and the others as their planes arrive. All
//! decisions are functions of the calls so far, never of time (R3): a plane counts as resident from the
//! moment its read is decided, and if it has not arrived when it is needed, the serving waits. In exact mode
//! the weights are those of the requested level, so results depend on none of this (R2).

mod ahead;
mod ceiling;
mod home;
mod lanes;
mod policy;
mod refiner;
mod resize;
mod room;
mod rows;
mod serving;
mod staging;

pub use lanes::{DEFAULT_LANES, MAX_LANES};
pub use policy::{DEFAULT_FLOOR, DEFAULT_QUALITY, Order, Precision};
pub use refiner::{RefineOptions, Refiner};
pub(crate) use rows::FileRows;
pub use staging::DeviceOptions;
pub(crate) use staging::staging_bytes;

use crate::error::{Error, Result};
use crate::experts::{Expert, ExpertSource, Guess, LayerExperts, Meanwhile, Wanted};
use crate::quant::Level;
use crate::store::{Access, Measured, Storage};
use crate::telemetry::{StreamStats, Trace, Track};
use home::Home;
use lanes::{Landed, Lanes, Request};
use policy::Ask;
use resize::Requests;
use staging::{Staging, ToDevice};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How experts are streamed.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The precision at which experts are computed.
    pub precision: Precision,
    /// Bytes of memory for planes, in all layers together.
    pub cache_bytes: usize,
    /// Set if that memory is on a device; by default it is on the host.
    pub device: Option<DeviceOptions>,
    /// I/O lanes.
    pub lanes: usize,
    /// Compute while reads are in flight; otherwise wait for all of them first.
    pub overlap: bool,
    /// When checksums of planes are compared.
    pub verify: Verify,
    /// The half-life of an expert's heat, in tokens.
    pub half_life: f32,
    /// The order in which refinements are bought.
    pub order: Order,
    /// Bytes that a serving may read for refinements, in place of a price: for comparisons at equal bytes.
    pub refinement_bytes: Option<usize>,
    /// The most experts of the next layer to prefetch; if not 0, its router is run early.
    pub lookahead: usize,
}

/// When a plane's checksum is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Every time.
    Always,
    /// The first time that a plane is read: detects a damaged file at a bounded cost.
    #[default]
    First,
    /// Never.
    Never,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            precision: Precision::Exact(Level::B4),
            cache_bytes: 0,
            device: None,
            lanes: DEFAULT_LANES,
            overlap: true,
            verify: Verify::First,
            half_life: 4.0,
            order: Order::Worth,
            refinement_bytes: None,
            lookahead: 0,
        }
    }
}

/// A model's experts on storage.
pub struct Streamer {
    path: PathBuf,
    access: Access,
    measured: Option<Measured>,
    lanes: Lanes,
    options: StreamOptions,
    /// The alignment of slabs.
    granule: usize,
    top_k: usize,
    trace: Option<Arc<Trace>>,
    state: Mutex<State>,
    /// The smallest possible cache on the host.
    least: u64,
    /// The most bytes that may be cached; readable while a layer is served.
    capacity: AtomicU64,
    /// Whether the cache is on the host.
    on_host: AtomicBool,
    /// Whether a resize is requested and not executed yet.
    asked: AtomicBool,
    requests: Requests,
}

struct State {
    /// Indexed by layer; `None` if a layer is dense.
    homes: Vec<Option<Home>>,
    /// Staging memory, if the experts are on a device.
    staging: Option<Staging>,
    stats: StreamStats,
    /// Reads in flight.
    pending: usize,
    /// Failed reads whose planes still count as resident: (layer, expert, plane).
    failed: Vec<(usize, usize, usize)>,
    quality: f32,
    /// The guessed choice of the next layer's router.
    guess: Vec<Wanted>,
}

/// An expert's bits in memory or in flight, and its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// 0 if there are none.
    pub bits: u8,
    /// Planes read since the start; wraps around.
    pub reads: u32,
}

/// A read that failed.
struct Fault {
    layer: usize,
    expert: usize,
    offset: u64,
    source: io::Error,
}

impl Streamer {
    /// Experts of `tables` (by layer) in the file at `path`, read with `storage`. `granule` is the alignment of slabs.
    ///
    /// # Errors
    /// `Invalid` if the cache cannot hold one expert of every layer, or the options are invalid.
    pub fn new(
        path: PathBuf,
        storage: Arc<dyn Storage>,
        tables: Vec<Option<LayerExperts>>,
        granule: usize,
        top_k: usize,
        options: StreamOptions,
        trace: Option<Arc<Trace>>,
    ) -> Result<Streamer> {
        let homes = staging::homes(tables, options.cache_bytes, granule, &options)?;
        let least = resize::least_bytes(&homes, granule, options.precision.floor());
        let capacity = AtomicU64::new(resize::capacity(&homes));
        let on_host = AtomicBool::new(options.device.is_none());
        let staging = options.device.as_ref().map(|device| Staging::new(device, granule)).transpose()?;
        let (access, measured) = (storage.access(), storage.measured());
        let lanes = Lanes::new(options.lanes, storage, trace.clone())?;
        let quality = match options.precision {
            Precision::Exact(_) => 0.0,
            Precision::Adaptive { quality, .. } => quality,
        };
        let state = State {
            homes,
            staging,
            stats: StreamStats::default(),
            pending: 0,
            failed: Vec::new(),
            quality,
            guess: Vec::new(),
        };
        Ok(Streamer {
            path,
            access,
            measured,
            lanes,
            options,
            granule,
            top_k,
            trace,
            state: Mutex::new(state),
            least,
            capacity,
            on_host,
            asked: AtomicBool::new(false),
            requests: Requests::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // If a panic poisoned the lock, the bookkeeping is between two steps and still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters since the start.
    pub fn stats(&self) -> StreamStats {
        let mut stats = self.lock().stats.clone();
        (stats.lane_ns, stats.retries) = self.lanes.counters();
        stats
    }

    /// What is in memory for every expert, by layer. Waits for the layer that is being computed.
    pub fn held(&self) -> Vec<Vec<Held>> {
        let held = |home: &Home, e: usize| Held {
            bits: home.cache.planes(e).checked_sub(1).map_or(0, |top| Level::ALL[top].bits()),
            reads: home.reads[e],
        };
        let of = |home: &Home| (0..home.cache.experts()).map(|e| held(home, e)).collect();
        self.lock().homes.iter().map(|home| home.as_ref().map_or_else(Vec::new, of)).collect()
    }

    /// How the file is read.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The number of waits for a read that have begun. Takes no lock: it may be called during a wait.
    pub fn waits(&self) -> u64 {
        self.lanes.waits()
    }

    /// I/O lanes.
    pub fn lanes(&self) -> usize {
        self.lanes.count()
    }

    /// The throughput measured when the file was opened.
    pub fn measured(&self) -> Option<Measured> {
        self.measured
    }

    /// Changes the quality of adaptive precision from the next serving on. On a device, no expert gets more
    /// planes than fit its slot.
    pub fn set_quality(&self, quality: f32) {
        self.lock().quality = quality.clamp(2.0, 8.0);
    }

    /// The current quality.
    pub fn quality(&self) -> f32 {
        self.lock().quality
    }

    /// The heat of every expert, by layer. A warm start restores it.
    pub fn heat(&self) -> Vec<Vec<f32>> {
        let state = self.lock();
        let of = |home: &Home| (0..home.cache.experts()).map(|e| home.cache.heat(e)).collect();
        state.homes.iter().map(|home| home.as_ref().map_or_else(Vec::new, of)).collect()
    }

    /// Sets the heat of every expert and loads the hottest, each at the floor, until the cache is full. If
    /// the cache is on a device, `send` uploads the experts of a layer.
    ///
    /// # Errors
    /// `Invalid` if `heat` belongs to another model; errors of reading and of `send`.
    pub(crate) fn warm_start(&self, heat: &[Vec<f32>], send: ToDevice) -> Result<()> {
        let mut state = self.lock();
        let fits = state.homes.len() == heat.len()
            && (state.homes.iter().zip(heat)).all(|(home, heat)| {
                home.as_ref().map_or(0, |h| h.cache.experts()) == heat.len()
                    && heat.iter().all(|h| h.is_finite() && *h >= 0.0)
            });
        if !fits {
            return Err(Error::Invalid("this heat is another model's; leave it out".into()));
        }
        for (layer, heat) in heat.iter().enumerate().filter(|(_, heat)| !heat.is_empty()) {
            self.load_hottest(&mut state, layer, heat, send)?;
        }
        Ok(())
    }

    /// Takes completed reads without waiting. A failure is reported when its plane is needed.
    fn collect(&self, state: &mut State) {
        while let Some(landed) = self.lanes.poll() {
            let _ = state.land(landed);
        }
        self.take_back(state);
    }

    /// Waits for one read.
    fn wait(&self, state: &mut State) -> Result<(), Fault> {
        let start = Instant::now();
        let landed = self.lanes.wait();
        state.stats.wait_ns += start.elapsed().as_nanos() as u64;
        if let Some(trace) = &self.trace {
            trace.span(Track::Compute(0), start, || "waiting for reads".into());
        }
        state.land(landed)
    }

    /// After failures: waits for all reads in flight, then removes the planes that did not arrive.
    fn take_back(&self, state: &mut State) {
        if state.failed.is_empty() {
            return;
        }
        while state.pending > 0 {
            let _ = self.wait(state);
        }
        // From the top: a plane is removed before the planes below it.
        let mut failed = std::mem::take(&mut state.failed);
        failed.sort_by_key(|&(_, _, plane)| std::cmp::Reverse(plane));
        for (layer, expert, plane) in failed {
            state.home(layer).failed(expert, plane);
        }
    }

    fn read_error(&self, offset: u64, e: io::Error) -> Error {
        Error::io(&self.path, io::Error::new(e.kind(), format!("reading experts at byte {offset}: {e}")))
    }
}

impl State {
    fn home(&mut self, layer: usize) -> &mut Home {
        self.homes[layer].as_mut().expect("a routed layer has experts")
    }

    /// Stores a completed read in its layer.
    fn land(&mut self, landed: Landed) -> Result<(), Fault> {
        let Landed { layer, expert, plane, offset, result } = landed;
        self.pending -= 1;
        match result {
            Ok(slab) => {
                self.home(layer).landed(expert, plane, Arc::new(slab));
                Ok(())
            }
            Err(e) => {
                self.failed.push((layer, expert, plane));
                Err(Fault { layer, expert, offset, source: e })
            }
        }
    }
}

impl ExpertSource for Streamer {
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        mut meanwhile: Meanwhile,
    ) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        self.collect(state);
        self.fulfil(state);
        self.unstage(state);
        self.heat_up(state.home(layer), wanted);
        let home = state.home(layer);
        let mut asks: Vec<Ask> = match self.options.precision {
            Precision::Exact(level) => policy::asks(wanted, |e| home.at_most(e, level.planes())),
            // Resident planes cost nothing.
            Precision::Adaptive { floor, .. } => {
                policy::asks(wanted, |e| home.at_most(e, floor.planes()).max(home.cache.planes(e)))
            }
        };
        // With a device, running a router early costs one more wait per layer, so nothing is prefetched.
        meanwhile.guess = meanwhile.guess.filter(|_| state.staging.is_none());
        state.stats.servings += 1;
        let reads = state.stats.bytes_wanted;
        self.bring_and_compute(state, layer, &mut asks, compute, meanwhile)?;
        state.stats.servings_without_reads += u64::from(state.stats.bytes_wanted == reads);
        Ok(())
    }

    fn announce(&self, layer: usize, guess: Guess) -> Result<()> {
        let mut state = self.lock();
        // As in `serve`, nothing is prefetched with a device.
        if state.staging.is_some() {
            return Ok(());
        }
        self.look_ahead(&mut state, layer, guess, usize::MAX)
    }

    fn level(&self) -> Option<Level> {
        match self.options.precision {
            Precision::Exact(level) => Some(level),
            Precision::Adaptive { .. } => None,
        }
    }

    fn keep_on_host(&self, bytes: u64) -> Result<()> {
        self.move_to_host(bytes)
    }

    fn resident(&self, layer: usize, out: &mut [bool]) {
        let mut state = self.lock();
        let planes = self.options.precision.floor().planes();
        let home = state.home(layer);
        out.iter_mut().enumerate().for_each(|(e, out)| *out = home.has_floor(e, planes));
    }
}
