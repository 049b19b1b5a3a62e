//! The bookkeeping of refinements, per layer: which experts have one more plane, and which planes are in
//! flight. No I/O; `refiner.rs` determines the times.

use super::HYSTERESIS;
use crate::cache::{LayerCache, Worth};
use crate::experts::LayerExperts;
use crate::quant::PLANES;
use crate::sched::lanes::Landed;
use crate::sched::policy;
use crate::store::{Arena, Slab};
use crate::telemetry::StreamStats;
use std::collections::VecDeque;
use std::io;

pub(super) struct State {
    /// Whether choices add heat and decisions are made.
    pub(super) on: bool,
    /// Indexed by layer; `None` if a layer is dense or has no such plane.
    pub(super) layers: Vec<Option<Layer>>,
    /// Planes in flight, in the order in which they take effect.
    pub(super) coming: VecDeque<Coming>,
    /// Reads in flight.
    pub(super) pending: usize,
    /// Staging memory for reads; `None` after reading has stopped.
    pub(super) arena: Option<Arena>,
    /// The most planes that a call may request.
    pub(super) swaps: usize,
    /// Number of calls so far.
    pub(super) call: u64,
    pub(super) stats: StreamStats,
}

pub(super) struct Layer {
    pub(super) table: LayerExperts,
    /// The experts with a slot. An expert counts from the decision on.
    pub(super) cache: LayerCache,
    /// Slots without an expert.
    pub(super) free: Vec<usize>,
    /// Indexed by expert: its slot while its plane is in effect.
    pub(super) at: Vec<Option<usize>>,
    /// Indexed by expert: 1 while its plane is in flight, which protects it from eviction.
    pub(super) keep: Vec<u8>,
    /// Experts whose plane was read once, and those whose read failed: these are not requested again.
    pub(super) seen: Vec<bool>,
    pub(super) broken: Vec<bool>,
    /// Indexed by expert: how often its plane was read.
    pub(super) reads: Vec<u32>,
}

/// A plane that was decided on.
pub(super) struct Coming {
    /// The call before which it takes effect.
    pub(super) due: u64,
    pub(super) layer: usize,
    pub(super) expert: usize,
    pub(super) slot: usize,
    pub(super) loser: Option<usize>,
    pub(super) offset: u64,
    pub(super) plane: Option<io::Result<Slab>>,
}

/// A possible change: an expert that should get a slot, and the one that would lose it.
pub(super) struct Offer {
    pub(super) winner: usize,
    pub(super) loser: Option<usize>,
    pub(super) gain: f32,
}

impl State {
    pub(super) fn layer(&mut self, layer: usize) -> &mut Layer {
        self.layers[layer].as_mut().expect("a layer with planes to add")
    }

    pub(super) fn land(&mut self, landed: Landed) {
        self.pending -= 1;
        let of = |c: &&mut Coming| c.layer == landed.layer && c.expert == landed.expert;
        self.coming.iter_mut().find(of).expect("what lands was asked for").plane = Some(landed.result);
    }

    /// A plane takes effect.
    pub(super) fn effect(&mut self, coming: &Coming) {
        let layer = self.layer(coming.layer);
        layer.keep[coming.expert] = 0;
        layer.at[coming.expert] = Some(coming.slot);
        layer.seen[coming.expert] = true;
        if let Some(loser) = coming.loser {
            layer.at[loser] = None;
            self.stats.downgrades += 1;
        }
        self.stats.upgrades += 1;
    }

    /// Cancels a plane: everything stays as it was.
    pub(super) fn cancel(&mut self, coming: &Coming) {
        let layer = self.layer(coming.layer);
        layer.keep[coming.expert] = 0;
        layer.cache.drop_top(coming.expert);
        match coming.loser {
            Some(loser) => drop(layer.cache.add_next(loser)),
            None => layer.free.push(coming.slot),
        }
    }
}

impl Layer {
    pub(super) fn new(table: LayerExperts, plane: usize, slots: usize) -> Layer {
        let count = table.count();
        let worth = |e: &[f32; PLANES]| -> Worth { [policy::gain(e, plane), 0.0, 0.0, 0.0, 0.0] };
        let slots = slots.min(count);
        Layer {
            cache: LayerCache::new(slots, vec![1], table.errors.iter().map(worth).collect()),
            table,
            free: (0..slots).rev().collect(),
            at: vec![None; count],
            keep: vec![0; count],
            seen: vec![false; count],
            broken: vec![false; count],
            reads: vec![0; count],
        }
    }

    /// The best next change.
    pub(super) fn offer(&self) -> Option<Offer> {
        let value = |e: usize| self.cache.value(e, 0);
        // An expert that is about to lose its plane does not compete before it has lost it.
        let without = |&e: &usize| self.cache.planes(e) == 0 && self.at[e].is_none() && !self.broken[e];
        let best = |a: &usize, b: &usize| value(*a).total_cmp(&value(*b)).then(b.cmp(a));
        let winner = (0..self.cache.experts()).filter(without).max_by(best)?;
        let value = value(winner);
        if self.cache.free() > 0 {
            return (value > 0.0).then_some(Offer { winner, loser: None, gain: value });
        }
        let (loser, _, least) = self.cache.coldest(&self.keep)?;
        (value > HYSTERESIS * least).then_some(Offer { winner, loser: Some(loser), gain: value - least })
    }

    /// Gives an expert a slot: that of `loser`, or a free one.
    pub(super) fn take(&mut self, expert: usize, loser: Option<usize>) -> usize {
        let slot = match loser {
            Some(loser) => {
                self.cache.drop_top(loser);
                self.at[loser].expect("who may give way has its plane")
            }
            None => self.free.pop().expect("there is a free place"),
        };
        self.cache.add_next(expert);
        self.reads[expert] = self.reads[expert].wrapping_add(1);
        self.keep[expert] = 1;
        slot
    }
}
