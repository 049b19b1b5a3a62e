//! Experts that are all on a device at one level, the hottest of them with a plane more.
//!
//! [`Refiner`] never stops a token for what its routers choose. When a model is opened, every place for a plane goes to
//! whom it takes most error off. From then on choices, which come back with a token's logits, make heat, and heat decides
//! who should have a place in another's stead. A plane that was decided upon is read by a lane while the next token is
//! computed, and takes effect [`DELAY`] calls later: always then, and a call whose plane has not come yet waits for it (R3).
//! Runs on the model's thread, except for the lanes. It ends with the device: the planes are gone with that.
//!
//! What a plane is worth is its expert's heat times the error that it takes off; whoever is to give way for another must be
//! worth clearly less. Book-keeping is [`crate::cache::LayerCache`]'s, which counts places: a place is a plane of one byte to it.

use super::lanes::{Lanes, Request};
use super::{Verify, policy};
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

/// Calls from a decision to its effect: one to read the plane in, and the one that it is there for.
const DELAY: u64 = 2;

/// Planes that a call may ask for in all layers together, and bytes of them, where one is not more already: what is read and
/// copied beside a token stays a small part of what the token reads itself.
const SWAPS: usize = 8;
/// See [`SWAPS`].
const SWAP_BYTES: usize = 8 << 20;

/// A plane gives way to one that is worth so many times more: experts of about the same heat do not take it from each other
/// in turns.
const HYSTERESIS: f32 = 1.5;

/// How experts are refined.
#[derive(Clone, Debug)]
pub struct RefineOptions {
    /// The level of all experts.
    pub level: Level,
    /// Of every layer, how many experts may have the next plane.
    pub slots: usize,
    /// I/O lanes.
    pub lanes: usize,
    /// When checksums of planes are compared.
    pub verify: Verify,
    /// Tokens after which half of an expert's heat is gone.
    pub half_life: f32,
}

/// All experts of a model at one level, and who has a plane more.
pub struct Refiner {
    path: PathBuf,
    access: Access,
    base: AllResident,
    lanes: Lanes,
    options: RefineOptions,
    trace: Option<Arc<Trace>>,
    /// Whether the device that had the planes is gone.
    stopped: AtomicBool,
    state: Mutex<State>,
}

impl Refiner {
    /// Experts `tables` (by layer) of the file at `path`, of which `base` has all at one level, and `storage` reads planes.
    /// `granule` is what slabs are aligned to. Nothing is decided before [`Refiner::start`].
    ///
    /// # Errors
    /// `Invalid` where there is no memory or no thread.
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

    /// Bytes of what planes beyond `level` are read into.
    pub fn staging_bytes(tables: &[Option<LayerExperts>], level: Level) -> u64 {
        let (swaps, slab) = staging(tables, level);
        (swaps * slab) as u64 * DELAY
    }

    /// Fills all places: as nothing is known of heat, with the planes that take most error off. From then on choices count;
    /// those before were of a token that warmed a device up.
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

    /// What was done since the start.
    pub fn stats(&self) -> StreamStats {
        let mut stats = self.lock().stats.clone();
        (stats.lane_ns, stats.retries) = self.lanes.counters();
        stats
    }

    /// How often a read was waited for, counted when the wait begins, and without a lock: also while one goes on.
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
        // A computation that panicked leaves the book-keeping as it was between two steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the planes whose time has come.
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

    /// Waits for the planes that take effect now.
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

    /// After a failure: waits for everything under way and takes back what did not come, so that one fault of the storage
    /// is one error. The first of them.
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

    /// Asks for the planes that are worth most more than what gives way for them.
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

    /// Counts an offer as taken; `None` where sessions beside each other have all of the staging memory.
    fn swap(&self, state: &mut State, layer: usize, offer: &Offer) -> Option<Request> {
        let (plane, verify) = (self.options.level.planes(), self.options.verify);
        let of = state.layers[layer].as_mut().expect("a layer that made an offer");
        let slabs = &of.table.planes[plane];
        let slab = state.arena.as_ref()?.alloc(slabs.stride, End::Low)?;
        let &Offer { winner: expert, loser, .. } = offer;
        let offset = slabs.offset + (expert * slabs.stride) as u64;
        let compare = verify == Verify::Always || verify == Verify::First && !of.seen[expert];
        let checksum = compare.then(|| slabs.checksums[expert]);
        state.stats.bytes_wanted += slabs.stride as u64;
        let slot = of.take(expert, loser);
        state.stats.note([layer, expert, slot]);
        let due = state.call + DELAY;
        state.coming.push_back(Coming { due, layer, expert, slot, loser, offset, plane: None });
        Some(Request { layer, expert, plane, offset, checksum, slab })
    }
}

/// Planes that a call may ask for, and the bytes of the largest.
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
            // A gate that is no number says nothing of its expert, and must not stay in its heat for ever.
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
        // What lanes are filling cannot be given back.
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
