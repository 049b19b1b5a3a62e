//! All experts on a device at one level, the hottest of them with one more plane.
//!
//! With [`Refiner`], no token waits for its routers' choices. At open, the slots for planes go to the experts whose error
//! they reduce most. From then on choices, which are read back with a token's logits, add heat, and heat determines which
//! expert takes a slot from another. A lane reads the chosen plane while the next token is computed, and the plane takes
//! effect [`DELAY`] calls later. The delay is fixed: a call whose plane has not arrived waits for it (R3). Runs on the
//! model's thread, except for the lanes. If the device is lost, so are the planes, and refinement ends.
//!
//! A plane's value is its expert's heat times its error reduction. A plane is evicted only if it is worth clearly less
//! than the new one. [`crate::cache::LayerCache`] does the bookkeeping by counting slots: it treats a plane as one byte.

use super::lanes::{Lanes, Request};
use super::{Held, Verify, policy};
use crate::error::{Error, Result};
use crate::experts::{AllResident, Chosen, Expert, ExpertSource, LayerExperts, Meanwhile};
use crate::experts::{Refine, Refinement, Wanted};
use crate::quant::Level;
use crate::store::{Access, Arena, End, Storage};
use crate::telemetry::{StreamStats, Trace, Track};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

mod state;

use state::{Coming, Layer, Offer, State};

/// Calls from a decision to its effect: one for the read, and the one that uses the plane.
const DELAY: u64 = 2;

/// The most planes that a call may request in all layers together, and their total bytes, unless one plane is
/// larger. So these reads and copies stay small compared with what the token itself reads.
const SWAPS: usize = 8;
/// See [`SWAPS`].
const SWAP_BYTES: usize = 8 << 20;

/// A plane is evicted only for one that is worth this many times as much, so that experts of about the same
/// heat do not swap back and forth.
const HYSTERESIS: f32 = 1.5;

/// How experts are refined.
#[derive(Clone, Debug)]
pub struct RefineOptions {
    /// The level of all experts.
    pub level: Level,
    /// The most experts of a layer with the next plane.
    pub slots: usize,
    /// I/O lanes.
    pub lanes: usize,
    /// When checksums of planes are verified.
    pub verify: Verify,
    /// The half-life of an expert's heat, in tokens.
    pub half_life: f32,
}

/// All experts of a model at one level, some of them with one plane more.
pub struct Refiner {
    path: PathBuf,
    access: Access,
    base: AllResident,
    lanes: Lanes,
    options: RefineOptions,
    trace: Option<Arc<Trace>>,
    /// Set when the device with the planes is lost.
    stopped: AtomicBool,
    state: Mutex<State>,
}

impl Refiner {
    /// The experts of `tables` (by layer) in the file at `path`. `base` holds all of them at one level; `storage`
    /// reads planes. `granule` is the alignment of slabs. No decision is made before [`Refiner::start`].
    ///
    /// # Errors
    /// `Invalid` if there is no memory or no thread.
    pub fn new(
        path: PathBuf,
        storage: Arc<dyn Storage>,
        tables: Vec<Option<LayerExperts>>,
        base: AllResident,
        granule: usize,
        options: RefineOptions,
        trace: Option<Arc<Trace>>,
    ) -> Result<Refiner> {
        let (swaps, slab) = staging(&tables, options.level);
        let plane = options.level.planes();
        let layer = |table: LayerExperts| Layer::new(table, plane, options.slots);
        let layers = tables.into_iter().map(|t| t.filter(|t| t.planes.len() > plane).map(layer)).collect();
        let access = storage.access();
        let lanes = Lanes::new(options.lanes, storage, trace.clone())?;
        let state = State {
            on: false,
            layers,
            coming: VecDeque::with_capacity(swaps * DELAY as usize),
            pending: 0,
            arena: Some(Arena::new(swaps * DELAY as usize * slab.next_multiple_of(granule), granule)?),
            swaps,
            call: 0,
            stats: StreamStats::default(),
        };
        let (stopped, state) = (AtomicBool::new(false), Mutex::new(state));
        Ok(Refiner { path, access, base, lanes, options, trace, stopped, state })
    }

    /// Bytes of staging memory for reading planes above `level`.
    pub fn staging_bytes(tables: &[Option<LayerExperts>], level: Level) -> u64 {
        let (swaps, slab) = staging(tables, level);
        (swaps * slab) as u64 * DELAY
    }

    /// Fills all slots with the planes that reduce the error most, since there is no heat yet. Choices count
    /// from now on; earlier ones are from a token that warmed up the device.
    ///
    /// # Errors
    /// As [`Refine::begin`].
    pub fn start(&self, apply: &mut dyn FnMut(&Refinement) -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        let heat = |state: &mut State, heat: f32| {
            for cache in state.layers.iter_mut().flatten().map(|layer| &mut layer.cache) {
                (0..cache.experts()).for_each(|e| cache.set_heat(e, heat));
            }
        };
        heat(state, 1.0);
        loop {
            self.decide(state);
            if state.coming.is_empty() {
                break;
            }
            state.call += DELAY;
            self.take_effect(state, apply)?;
        }
        heat(state, 0.0);
        state.stats = StreamStats { bytes_ahead: state.stats.bytes_wanted, ..StreamStats::default() };
        state.on = true;
        Ok(())
    }

    /// Counters since the start.
    pub fn stats(&self) -> StreamStats {
        let mut stats = self.lock().stats.clone();
        (stats.lane_ns, stats.retries) = self.lanes.counters();
        stats
    }

    /// What is in memory for every expert, by layer.
    pub fn held(&self) -> Vec<Vec<Held>> {
        let state = self.lock();
        let (level, finer) = (self.options.level, self.options.level.planes());
        let of = |(layer, own): (usize, &Option<Layer>)| {
            let all = || self.base.all(layer).map_or(0, <[Expert]>::len);
            let count = own.as_ref().map_or_else(all, |own| own.at.len());
            let one = |e: usize| {
                let refined = own.as_ref().is_some_and(|own| own.at[e].is_some());
                let bits = if refined { Level::ALL[finer].bits() } else { level.bits() };
                Held { bits, reads: own.as_ref().map_or(0, |own| own.reads[e]) }
            };
            (0..count).map(one).collect()
        };
        state.layers.iter().enumerate().map(of).collect()
    }

    /// The number of waits for a read that have begun. Takes no lock: it may be called during a wait.
    pub fn waits(&self) -> u64 {
        self.lanes.waits()
    }

    /// How the file is read.
    pub fn access(&self) -> Access {
        self.access
    }

    /// I/O lanes.
    pub fn lanes(&self) -> usize {
        self.lanes.count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // If a panic poisoned the lock, the bookkeeping is between two steps and still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the planes that are due.
    fn take_effect(&self, state: &mut State, apply: &mut dyn FnMut(&Refinement) -> Result<()>) -> Result<()> {
        self.await_due(state);
        let failed = |c: &Coming| matches!(c.plane, Some(Err(_)));
        if state.coming.iter().any(failed)
            && let Some(error) = self.take_back(state)
        {
            return Err(error);
        }
        let level = self.options.level.planes();
        while let Some(coming) = state.coming.pop_front_if(|c| c.due <= state.call) {
            let Some(Ok(plane)) = &coming.plane else { unreachable!("it was waited for") };
            let (layer, slot, expert) = (coming.layer, coming.slot, coming.expert);
            let fits = state.layer(layer).table.fits[expert].map(|fits| fits[level]);
            let applied = apply(&Refinement { layer, slot, expert: expert as u32, fits, plane });
            if applied.is_err() {
                state.cancel(&coming);
                return applied;
            }
            state.effect(&coming);
        }
        Ok(())
    }

    /// Waits for the planes that are due now.
    fn await_due(&self, state: &mut State) {
        while let Some(landed) = self.lanes.poll() {
            state.land(landed);
        }
        let call = state.call;
        let late = |state: &State| state.coming.iter().any(|c| c.due <= call && c.plane.is_none());
        if !late(state) {
            return;
        }
        let start = Instant::now();
        while late(state) {
            state.land(self.lanes.wait());
        }
        state.stats.stalls += 1;
        state.stats.wait_ns += start.elapsed().as_nanos() as u64;
        if let Some(trace) = &self.trace {
            trace.span(Track::Compute(0), start, || "waiting for refinements".into());
        }
    }

    /// After a failure: waits for all reads in flight and cancels the planes that did not arrive, so that one
    /// storage fault is reported once. Returns the first error.
    fn take_back(&self, state: &mut State) -> Option<Error> {
        while state.pending > 0 {
            state.land(self.lanes.wait());
        }
        let mut first = None;
        for coming in std::mem::take(&mut state.coming) {
            match coming.plane {
                Some(Err(ref e)) => {
                    let what = format!("reading experts at byte {}: {e}", coming.offset);
                    first.get_or_insert_with(|| Error::io(&self.path, io::Error::new(e.kind(), what)));
                    state.cancel(&coming);
                    state.layer(coming.layer).broken[coming.expert] = true;
                }
                _ => state.coming.push_back(coming),
            }
        }
        first
    }

    /// Requests the planes with the largest gain over the planes they evict.
    fn decide(&self, state: &mut State) {
        let mut offers: Vec<Option<Offer>> =
            state.layers.iter().map(|layer| layer.as_ref().and_then(Layer::offer)).collect();
        let mut requests = Vec::new();
        while requests.len() < state.swaps {
            let best = (offers.iter().enumerate())
                .filter_map(|(layer, offer)| Some((layer, offer.as_ref()?.gain)))
                .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let Some(offer) = best.and_then(|(layer, _)| offers[layer].take().map(|o| (layer, o))) else {
                break;
            };
            let Some(request) = self.swap(state, offer.0, &offer.1) else { break };
            requests.push(request);
            offers[offer.0] = state.layer(offer.0).offer();
        }
        state.pending += requests.len();
        self.lanes.submit(requests, false);
    }

    /// Executes an offer; `None` if other sessions use all of the staging memory.
    fn swap(&self, state: &mut State, layer: usize, offer: &Offer) -> Option<Request> {
        let (plane, verify) = (self.options.level.planes(), self.options.verify);
        let of = state.layers[layer].as_mut().expect("a layer that made an offer");
        let slabs = &of.table.planes[plane];
        let slab = state.arena.as_ref()?.alloc(slabs.stride, End::Low)?;
        let &Offer { winner: expert, loser, .. } = offer;
        let (offset, sum) = slabs.slab(expert)?;
        let compare = verify == Verify::Always || verify == Verify::First && !of.seen[expert];
        let checksum = compare.then_some(sum);
        state.stats.bytes_wanted += slabs.stride as u64;
        let slot = of.take(expert, loser);
        state.stats.note([layer, expert, slot]);
        let due = state.call + DELAY;
        state.coming.push_back(Coming { due, layer, expert, slot, loser, offset, plane: None });
        Some(Request { layer, expert, plane, offset, checksum, slab })
    }
}

/// The most planes that a call may request, and the bytes of the largest.
fn staging(tables: &[Option<LayerExperts>], level: Level) -> (usize, usize) {
    let plane = level.planes();
    let slabs = tables.iter().flatten().filter(|t| t.planes.len() > plane).map(|t| t.plane_bytes(plane));
    let slab = slabs.max().unwrap_or(0);
    ((SWAP_BYTES / slab.max(1)).clamp(1, SWAPS), slab)
}

impl Refine for Refiner {
    fn begin(&self, apply: &mut dyn FnMut(&Refinement) -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        state.call += 1;
        self.take_effect(state, apply)
    }

    fn end(&self, tokens: usize, seen: usize, chosen: &mut dyn Iterator<Item = Chosen>) {
        let mut state = self.lock();
        let state = &mut *state;
        if !state.on {
            return;
        }
        let mut weight = 0.0;
        for layer in state.layers.iter_mut().flatten() {
            weight = policy::cool(&mut layer.cache, tokens as f32, self.options.half_life);
        }
        weight /= seen.max(1) as f32;
        let base = self.options.level.planes();
        for Chosen { layer, expert, gate } in chosen {
            let Some(of) = &mut state.layers[layer] else { continue };
            let refined = of.at[expert as usize].is_some();
            let planes = base + usize::from(refined);
            for p in 0..=base {
                state.stats.planes_wanted[p] += 1;
                state.stats.planes_hit[p] += u64::from(p < planes);
            }
            state.stats.note([layer, expert as usize, planes + 16]);
            // A gate that is NaN or infinite has no meaning, and would stay in its expert's heat for ever.
            if gate.is_finite() {
                of.cache.warm(expert as usize, gate * weight);
                state.stats.gate_mass += f64::from(gate);
                state.stats.gate_mass_bits += f64::from(gate) * f64::from(Level::ALL[planes - 1].bits());
            }
        }
        if seen > 0 {
            self.decide(state);
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let state = &mut *state;
        state.on = false;
        // Slabs that lanes are filling cannot be freed.
        while state.pending > 0 {
            state.land(self.lanes.wait());
        }
        state.coming.clear();
        state.arena = None;
    }
}

impl ExpertSource for Refiner {
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        meanwhile: Meanwhile,
    ) -> Result<()> {
        self.base.serve(layer, wanted, compute, meanwhile)
    }

    fn level(&self) -> Option<Level> {
        None
    }

    fn all(&self, layer: usize) -> Option<&[Expert]> {
        self.base.all(layer)
    }

    fn refine(&self) -> Option<&dyn Refine> {
        (!self.stopped.load(Ordering::Relaxed)).then_some(self)
    }
}

#[cfg(test)]
mod tests;
