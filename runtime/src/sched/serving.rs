//! One serving: loads the wanted experts of a layer into memory and computes them.
//!
//! Runs on the model's thread, with the state locked. If all wanted experts fit the layer's share of the cache,
//! everything is decided before the first read is submitted. `room` decides; this file has the order of steps.

use super::home::Home;
use super::policy::{self, Ask};
use super::{Request, State, Streamer};
use crate::error::{Error, Result};
use crate::experts::{Expert, Meanwhile, Wanted};
use crate::quant::Level;
use crate::telemetry::Track;
use std::io;
use std::time::Instant;

/// The most experts per batch, so that the list fits the stack.
const BATCH: usize = 64;

/// If the wanted experts do not all fit, the resident ones are computed in this many steps. With fewer steps
/// the lanes idle longer at first; with more, the threads have fewer experts to share.
const STEPS: usize = 4;

/// The part of a layer's share (1/3) that such reads may take at a time: the experts computed first are the
/// hottest and should stay.
const WINDOW: usize = 3;

impl Streamer {
    /// Decays the layer's heat by the current tokens and adds their gate mass.
    pub(super) fn heat_up(&self, home: &mut Home, wanted: &[Wanted]) {
        let slots: u32 = wanted.iter().map(|w| w.tokens).sum();
        let tokens = (slots as f32 / self.top_k.max(1) as f32).max(1.0);
        let weight = policy::cool(&mut home.cache, tokens, self.options.half_life) / tokens;
        for w in wanted {
            home.cache.warm(w.expert as usize, w.gate * weight);
        }
    }

    /// Loads `asks` and computes them, resident ones first. If not all fit together, computed experts are
    /// evicted for the next ones while others are computed. Which expert is evicted for which depends on the
    /// order, not on time (R3). When it returns, also with an error, no read of this serving is in flight.
    pub(super) fn bring_and_compute(
        &self,
        state: &mut State,
        layer: usize,
        asks: &mut [Ask],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        mut meanwhile: Meanwhile,
    ) -> Result<()> {
        let floor = self.options.precision.floor().planes();
        let home = state.home(layer);
        asks.sort_by_key(|ask| !home.has_floor(ask.expert, floor));
        let here = asks.iter().take_while(|ask| home.has_floor(ask.expert, floor)).count();
        let all: usize = asks.iter().map(|ask| home.cache.bytes(0, ask.planes.min(floor))).sum();
        let all_fit = all <= home.cache.capacity();
        let mut steps = || {
            // Asks before `begun` are resident or in flight; those before `done` are computed and may be evicted.
            let (mut begun, mut done) = (0, 0);
            while done < asks.len() {
                let to = match (all_fit, begun < here) {
                    (true, _) => asks.len(),
                    (false, true) => here,
                    (false, false) => begun + self.fit(state.home(layer), asks, done, begun, here),
                };
                self.begin(state, layer, &mut asks[done..to], begun - done)?;
                begun = to;
                if let Some(guess) = meanwhile.guess.take() {
                    self.look_ahead(state, layer + 1, guess, self.options.lookahead)?;
                }
                let step = if begun < asks.len() { (begun - done).div_ceil(STEPS) } else { begun - done };
                let (now, begun) = (&asks[done..done + step], &asks[done..begun]);
                self.compute(state, layer, (now, begun), compute, &mut meanwhile.idle)?;
                done += step;
            }
            Ok(())
        };
        let result = steps();
        if result.is_err() {
            while state.pending > 0 {
                let _ = self.wait(state);
            }
            self.take_back(state);
            self.unstage(state);
        }
        result
    }

    /// The number of asks from `begun` on that may be read while those from `done` on are not computed yet;
    /// of these, the asks from `here` on also needed reads. At least one if nothing else is left.
    fn fit(&self, home: &Home, asks: &[Ask], done: usize, begun: usize, here: usize) -> usize {
        let floor = self.options.precision.floor().planes();
        let bytes = |asks: &[Ask]| -> usize { asks.iter().map(|ask| home.cache.bytes(0, ask.planes)).sum() };
        let one = home.cache.bytes(0, floor);
        let reading = bytes(&asks[begun.min(done.max(here))..begun]);
        let window = (home.cache.capacity() / WINDOW).saturating_sub(reading);
        let free = home.cache.capacity() - bytes(&asks[done..begun]);
        let fit = (window.min(free) / one).min(asks.len() - begun);
        if begun == done { fit.max(1) } else { fit }
    }

    /// Loads `asks` from `begun` on; earlier asks are protected from eviction.
    fn begin(&self, state: &mut State, layer: usize, asks: &mut [Ask], begun: usize) -> Result<()> {
        if asks.len() == begun {
            return Ok(());
        }
        let floor = self.options.precision.floor().planes();
        let home = state.home(layer);
        home.keep.fill(0);
        let (old, new) = asks.split_at_mut(begun);
        old.iter().for_each(|ask| home.keep[ask.expert] = ask.planes as u8);
        new.iter().for_each(|ask| home.keep[ask.expert] = home.kept(floor));
        let reads = self.bring_in(state, layer, new, floor);
        self.account(state, layer, new, floor, &reads);
        state.stats.bytes_wanted += match state.staging {
            Some(_) => self.queue(state, layer, new, &reads),
            None => self.submit(state, layer, &reads, false)?,
        };
        Ok(())
    }

    /// Submits reads to the lanes and returns their bytes.
    pub(super) fn submit(
        &self,
        state: &mut State,
        layer: usize,
        reads: &[(usize, usize)],
        ahead: bool,
    ) -> Result<u64> {
        let mut moved = 0;
        let slabs = loop {
            if let Some(slabs) = state.home(layer).slabs(reads, &mut moved) {
                break slabs;
            }
            if state.pending == 0 {
                state.failed.extend(reads.iter().map(|&(expert, plane)| (layer, expert, plane)));
                self.take_back(state);
                return Err(Error::Invalid(
                    "the cache lost track of its memory; open the model again".into(),
                ));
            }
            self.wait_for_any(state);
        };
        state.stats.bytes_moved += moved;
        let home = state.home(layer);
        let verify = self.options.verify;
        let requests: Vec<Request> = (reads.iter().zip(slabs))
            .map(|(&(expert, plane), slab)| home.request(layer, expert, plane, slab, verify))
            .collect();
        let bytes = requests.iter().map(|r| r.slab.len() as u64).sum();
        state.pending += requests.len();
        self.lanes.submit(requests, ahead);
        Ok(bytes)
    }

    /// Counts hits and the precision used.
    fn account(&self, state: &mut State, layer: usize, asks: &[Ask], floor: usize, reads: &[(usize, usize)]) {
        for ask in asks {
            let read = reads.iter().filter(|r| r.0 == ask.expert).count();
            let used = state.home(layer).at_most(ask.expert, ask.planes.max(floor));
            for p in 0..used {
                state.stats.planes_wanted[p] += 1;
                state.stats.planes_hit[p] += u64::from(p + read < used);
            }
            let mass = f64::from(ask.gate);
            state.stats.gate_mass += mass;
            state.stats.gate_mass_bits += mass * f64::from(Level::ALL[used - 1].bits());
            state.stats.note([layer, ask.expert, used + 16]);
        }
    }

    /// Computes `asks`: resident experts at once, the others as their planes arrive. Reads of the `begun`
    /// asks may have failed already. `idle` is called before the first wait.
    fn compute(
        &self,
        state: &mut State,
        layer: usize,
        (asks, begun): (&[Ask], &[Ask]),
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        idle: &mut Option<&mut dyn FnMut()>,
    ) -> Result<()> {
        let mut left: Vec<&Ask> = asks.iter().collect();
        loop {
            let all_here = left.iter().all(|a| state.home(layer).loaded(a.expert, a.planes));
            // Staging memory may be too small for all of them, so with a device we never wait for all.
            if self.options.overlap || all_here || state.staging.is_some() {
                let home = state.home(layer);
                let (ready, later): (Vec<&Ask>, Vec<&Ask>) =
                    left.iter().partition(|a| home.loaded(a.expert, a.planes));
                left = later;
                self.hand_out(state, layer, &ready, compute)?;
            }
            if left.is_empty() {
                return Ok(());
            }
            if state.pending == 0 {
                return Err(self.read_error(0, io::Error::other("a plane that was read ahead did not come")));
            }
            let mut landed = match (self.lanes.poll(), idle.take()) {
                (Some(landed), unused) => {
                    *idle = unused;
                    state.land(landed)
                }
                (None, idle) => {
                    let start = Instant::now();
                    idle.into_iter().for_each(|idle| idle());
                    state.stats.wait_ns += start.elapsed().as_nanos() as u64;
                    self.wait(state)
                }
            };
            // All other experts whose planes have arrived by now are computed in one batch.
            loop {
                if let Err(fault) = landed
                    && fault.layer == layer
                    && begun.iter().any(|a| a.expert == fault.expert)
                {
                    return Err(self.read_error(fault.offset, fault.source));
                }
                let Some(next) = self.lanes.poll() else { break };
                landed = state.land(next);
            }
        }
    }

    fn hand_out(
        &self,
        state: &mut State,
        layer: usize,
        ready: &[&Ask],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
    ) -> Result<()> {
        for ready in ready.chunks(BATCH) {
            let home = state.home(layer);
            for ask in ready {
                home.prepare(ask.expert, ask.planes)?;
            }
            let first = (ready[0].index, home.view(ready[0].expert));
            let mut batch = [first; BATCH];
            for (to, ask) in batch.iter_mut().zip(ready) {
                *to = (ask.index, home.view(ask.expert));
            }
            let start = Instant::now();
            compute(&batch[..ready.len()])?;
            let n = ready.len();
            self.sent(state, layer, ready);
            state.stats.compute_ns += start.elapsed().as_nanos() as u64;
            if let Some(trace) = &self.trace {
                trace.span(Track::Compute(0), start, || format!("layer {layer}: {n} experts"));
            }
        }
        Ok(())
    }
}
