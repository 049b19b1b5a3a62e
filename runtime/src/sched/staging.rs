//! Experts that a device keeps: the staging memory through which planes reach it, and the move to the host when it is
//! lost.
//!
//! The device's memory is the cache, with [`Home`] as its directory. The host holds a plane from its read until the
//! device has it, in one arena for all layers, sized by the plan. Reads of a serving that find no room there queue up
//! in the order in which their experts are computed. An expert's reads get room together or not at all, so the first in
//! the queue can always be finished. After a serving, nothing is left on the host.

use super::home::Home;
use super::policy::{self, Ask};
use super::resize;
use super::{Request, State, StreamOptions, Streamer};
use crate::cache::Worth;
use crate::error::{Error, Result};
use crate::experts::{Expert, LayerExperts, Meanwhile, Wanted};
use crate::quant::{self, Level};
use crate::store::{Arena, End};
use crate::telemetry::StreamStats;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// Experts in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// No expert has more planes there than this level has.
    pub level: Level,
    /// Bytes of host staging memory.
    pub staging_bytes: usize,
}

/// Uploads some experts of a layer to a device in advance.
pub(super) type ToDevice<'a> = &'a mut dyn FnMut(usize, &[(u32, &Expert)]) -> Result<()>;

/// Staging memory.
pub(super) struct Staging {
    arena: Arena,
    /// Reads that wait for room: (layer, expert, plane), those of one expert in sequence.
    queue: VecDeque<(usize, usize, usize)>,
}

impl Staging {
    pub(super) fn new(options: &DeviceOptions, granule: usize) -> Result<Staging> {
        // No more than was planned; the planes of one expert are whole granules.
        let bytes = options.staging_bytes / granule * granule;
        Ok(Staging { arena: Arena::new(bytes, granule)?, queue: VecDeque::new() })
    }

    /// Its size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.arena.bytes()
    }
}

/// Bytes of staging memory on the host: the least, which fits one expert at a time, and the best, which fits all
/// experts of a token unless that is too much.
pub(crate) fn staging_bytes(tables: &[Option<LayerExperts>], level: Level, top_k: usize) -> (u64, u64) {
    /// The lanes stay busy with this much, even if one token's experts take more.
    const ENOUGH: u64 = 32 << 20;
    let one = |t: &LayerExperts| t.expert_bytes(level.min(t.level())) as u64;
    let one = tables.iter().flatten().map(one).max().unwrap_or(0);
    (one, (top_k as u64 * one).min(ENOUGH).max(2 * one))
}

/// By layer, an empty home on the host or on a device, with the same share of `bytes` for all.
///
/// # Errors
/// `Invalid` if that does not hold one expert of every layer.
pub(super) fn homes(
    tables: Vec<Option<LayerExperts>>,
    bytes: usize,
    granule: usize,
    options: &StreamOptions,
) -> Result<Vec<Option<Home>>> {
    let share = bytes / tables.iter().flatten().count().max(1);
    let floor = options.precision.floor();
    // Layers, and experts of a layer, may be stored at fewer bits than others.
    if let Some(most) = tables.iter().flatten().map(LayerExperts::level).max() {
        quant::check_level(floor, most)?;
    }
    let home = |table: LayerExperts| {
        let home = match &options.device {
            Some(device) => Home::on_device(table, share, device.level),
            None => {
                let worth: Vec<Worth> = table.errors.iter().map(|e| options.precision.worth(e)).collect();
                Home::new(table, share, granule, worth)?
            }
        };
        if home.bytes(floor) > home.cache.capacity() {
            return Err(Error::Invalid(format!(
                "a cache of {share} bytes a layer does not hold one expert of {} bytes",
                home.bytes(floor)
            )));
        }
        Ok(home)
    };
    tables.into_iter().map(|table| table.map(home).transpose()).collect()
}

impl Streamer {
    /// Bytes of host memory for experts: the cache, or the staging memory of a device.
    pub fn host_bytes(&self) -> usize {
        let state = self.lock();
        let homes: usize = state.homes.iter().flatten().map(Home::host_bytes).sum();
        homes + state.staging.as_ref().map_or(0, Staging::bytes)
    }

    /// The smallest cache on the host that holds one expert of every layer.
    pub(crate) fn least_host_bytes(&self) -> u64 {
        self.least
    }

    /// Queues reads for experts in the order of `asks`, and submits those that there is room for. Returns their bytes.
    pub(super) fn queue(
        &self,
        state: &mut State,
        layer: usize,
        asks: &[Ask],
        reads: &[(usize, usize)],
    ) -> u64 {
        let Some(staging) = &mut state.staging else { return 0 };
        for ask in asks {
            let of = reads.iter().filter(|read| read.0 == ask.expert);
            staging.queue.extend(of.map(|&(expert, plane)| (layer, expert, plane)));
        }
        self.feed(state);
        let table = &state.home(layer).table;
        reads.iter().map(|&(_, plane)| table.plane_bytes(plane) as u64).sum()
    }

    /// Submits queued reads to the lanes, as far as there is room.
    fn feed(&self, state: &mut State) {
        loop {
            let State { homes, staging: Some(staging), .. } = state else { return };
            let Some(&(layer, expert, _)) = staging.queue.front() else { return };
            let home = homes[layer].as_ref().expect("a routed layer has experts");
            let count = staging.queue.iter().take_while(|read| (read.0, read.1) == (layer, expert)).count();
            let planes = staging.queue.iter().take(count).map(|read| read.2);
            let slabs: Option<Vec<_>> =
                planes.map(|plane| staging.arena.alloc(home.table.plane_bytes(plane), End::Low)).collect();
            let Some(slabs) = slabs else { return };
            let planes = staging.queue.drain(..count);
            let verify = self.options.verify;
            let requests: Vec<Request> = planes
                .zip(slabs)
                .map(|((.., plane), slab)| home.request(layer, expert, plane, slab, verify))
                .collect();
            state.pending += requests.len();
            self.lanes.submit(requests, false);
        }
    }

    /// Uploads the first experts of `order`, as many as there are slots, to a device, each at the floor.
    pub(super) fn send_hottest(
        &self,
        state: &mut State,
        layer: usize,
        order: &[usize],
        send: ToDevice,
    ) -> Result<()> {
        let floor = self.options.precision.floor();
        let home = state.home(layer);
        let places = home.cache.capacity() / home.bytes(floor);
        let wanted = |&e: &usize| Wanted { expert: e as u32, gate: 0.0, energy: 0.0, tokens: 1 };
        let wanted: Vec<Wanted> = order.iter().take(places).map(wanted).collect();
        let home = state.home(layer);
        let mut asks = policy::asks(&wanted, |e| home.at_most(e, floor.planes()));
        let mut send = |batch: &[(usize, &Expert)]| {
            let named: Vec<_> = batch.iter().map(|&(i, expert)| (wanted[i].expert, expert)).collect();
            send(layer, &named)
        };
        // Nothing was wanted yet, so the counters of wanted planes stay as they were.
        let before = state.stats.clone();
        let sent = self.bring_and_compute(state, layer, &mut asks, &mut send, Meanwhile::default());
        let read = state.stats.bytes_wanted - before.bytes_wanted;
        state.stats = StreamStats { bytes_ahead: before.bytes_ahead + read, ..before };
        sent
    }

    /// The device has the computed experts: their slabs are freed for others.
    pub(super) fn sent(&self, state: &mut State, layer: usize, computed: &[&Ask]) {
        if state.staging.is_some() {
            let home = state.home(layer);
            computed.iter().for_each(|ask| home.sent(ask.expert, ask.planes));
            self.feed(state);
        }
    }

    /// After a serving that failed: nothing stays queued, in flight or on the host.
    pub(super) fn unstage(&self, state: &mut State) {
        let Some(staging) = &mut state.staging else { return };
        if staging.arena.free_bytes() == staging.arena.bytes() && staging.queue.is_empty() {
            return;
        }
        state.failed.extend(staging.queue.drain(..));
        while state.pending > 0 {
            let _ = self.wait(state);
        }
        self.take_back(state);
        state.homes.iter_mut().flatten().for_each(Home::give_up_unsent);
    }

    /// The throughput test hands nothing to the device. If the experts live there, none of the served ones arrived:
    /// forget them all.
    pub(super) fn forget_unless_on_host(&self) {
        let mut state = self.lock();
        if state.staging.is_some() {
            state.homes.iter_mut().flatten().for_each(Home::clear);
        }
    }

    /// Moves to the host, with an empty cache.
    pub(super) fn move_to_host(&self, bytes: u64) -> Result<()> {
        let mut state = self.lock();
        if state.staging.is_none() {
            return Ok(());
        }
        let tables = state.homes.iter().map(|home| home.as_ref().map(|home| home.table.clone())).collect();
        let options = StreamOptions { device: None, ..self.options.clone() };
        state.homes = homes(tables, usize::try_from(bytes).unwrap_or(usize::MAX), self.granule, &options)?;
        state.staging = None;
        self.capacity.store(resize::capacity(&state.homes), Ordering::Relaxed);
        self.on_host.store(true, Ordering::Relaxed);
        Ok(())
    }
}
