//! Experts in a device's memory: the staging memory for planes on their way there, and the move to the host
//! when the device is lost.
//!
//! The device's memory is the cache, with [`Home`] as its directory. The host holds a plane from its read
//! until its upload, in one arena for all layers, whose size is planned. If there is no room for a serving's
//! reads, they queue in the order in which their experts are computed. An expert's reads get room together or
//! not at all, so the first in the queue can always be completed. After a serving, the arena is empty.

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
    /// The highest level of an expert in the device's memory.
    pub level: Level,
    /// Bytes of host staging memory.
    pub staging_bytes: usize,
}

/// Uploads experts of a layer to a device in advance.
pub(super) type ToDevice<'a> = &'a mut dyn FnMut(usize, &[(u32, &Expert)]) -> Result<()>;

/// Staging memory.
pub(super) struct Staging {
    arena: Arena,
    /// Reads that wait for room: (layer, expert, plane). The reads of one expert are neighbours.
    queue: VecDeque<(usize, usize, usize)>,
}

impl Staging {
    pub(super) fn new(options: &DeviceOptions, granule: usize) -> Result<Staging> {
        // At most the planned size. The planes of one expert are whole granules.
        let bytes = options.staging_bytes / granule * granule;
        Ok(Staging { arena: Arena::new(bytes, granule)?, queue: VecDeque::new() })
    }

    /// The size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.arena.bytes()
    }
}

/// Bytes of staging memory on the host: the least, which fits one expert at a time, and the best, which fits
/// all experts of a token unless that is too much.
pub(crate) fn staging_bytes(tables: &[Option<LayerExperts>], level: Level, top_k: usize) -> (u64, u64) {
    /// This much keeps the lanes busy, even if one token's experts take more.
    const ENOUGH: u64 = 32 << 20;
    let one = |t: &LayerExperts| t.expert_bytes(level.min(t.level())) as u64;
    let one = tables.iter().flatten().map(one).max().unwrap_or(0);
    (one, (top_k as u64 * one).min(ENOUGH).max(2 * one))
}

/// One empty home per layer, on the host or on a device. All layers get the same share of `bytes`.
///
/// # Errors
/// `Invalid` if a share does not hold one expert.
pub(super) fn homes(
    tables: Vec<Option<LayerExperts>>,
    bytes: usize,
    granule: usize,
    options: &StreamOptions,
) -> Result<Vec<Option<Home>>> {
    let share = bytes / tables.iter().flatten().count().max(1);
    let floor = options.precision.floor();
    // Some layers, and some experts of a layer, may be stored with fewer bits than others.
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

    /// Queues reads for experts in the order of `asks`, and submits as many as there is room for. Returns their bytes.
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

    /// Submits queued reads to the lanes, as many as there is room for.
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

    /// Uploads the first experts of `order` to a device, as many as it has slots, each at the floor.
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
        // No layer was served, so the counters of wanted planes must not change.
        let before = state.stats.clone();
        let sent = self.bring_and_compute(state, layer, &mut asks, &mut send, Meanwhile::default());
        let read = state.stats.bytes_wanted - before.bytes_wanted;
        state.stats = StreamStats { bytes_ahead: before.bytes_ahead + read, ..before };
        sent
    }

    /// Called when the device has the computed experts: frees their slabs.
    pub(super) fn sent(&self, state: &mut State, layer: usize, computed: &[&Ask]) {
        if state.staging.is_some() {
            let home = state.home(layer);
            computed.iter().for_each(|ask| home.sent(ask.expert, ask.planes));
            self.feed(state);
        }
    }

    /// After a serving that failed: removes everything from the queue, from the lanes and from the host.
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

    /// The throughput test uploads nothing to the device. If the experts live there, none that were read
    /// arrived, so all are dropped.
    pub(super) fn forget_unless_on_host(&self) {
        let mut state = self.lock();
        if state.staging.is_some() {
            state.homes.iter_mut().flatten().for_each(Home::clear);
        }
    }

    /// Moves the cache to the host. It is empty then.
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
