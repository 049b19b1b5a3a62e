//! The effects of a decision: planes counted as resident, refinements bought, and planes evicted for both.
//!
//! All of it depends on the tokens, not on time (R3). A plane counts as resident from here on, before its
//! read is submitted, and a plane in flight is evicted only after its read has completed.

use super::home::Home;
use super::policy::{Ask, Precision, offers};
use super::{State, Streamer};

impl Streamer {
    /// Makes room for everything that `asks` need, and lists the (expert, plane) pairs to read.
    pub(super) fn bring_in(
        &self,
        state: &mut State,
        layer: usize,
        asks: &mut [Ask],
        floor: usize,
    ) -> Vec<(usize, usize)> {
        let mut reads = Vec::new();
        for ask in asks.iter() {
            while !state.home(layer).has_floor(ask.expert, floor) {
                let room = self.make_room(state, layer, ask.expert, f32::INFINITY);
                assert!(room, "the asks were cut to fit");
                reads.push((ask.expert, self.expect(state, layer, ask.expert)));
            }
        }
        if let Precision::Adaptive { .. } = self.options.precision {
            self.keep_what_is_there(state.home(layer), asks, floor);
            self.buy(state, layer, asks, &mut reads);
        }
        reads
    }

    /// Counts a plane as resident.
    pub(super) fn expect(&self, state: &mut State, layer: usize, expert: usize) -> usize {
        let plane = state.home(layer).expect(expert);
        log::trace!("layer {layer}: plane {plane} of expert {expert} is read");
        state.stats.upgrades += u64::from(plane > 0);
        state.stats.note([layer, expert, plane]);
        plane
    }

    /// Uses resident planes above the floor that were not evicted.
    fn keep_what_is_there(&self, home: &mut Home, asks: &mut [Ask], floor: usize) {
        for ask in asks {
            ask.planes = home.at_most(ask.expert, home.cache.planes(ask.expert).max(floor));
            home.keep[ask.expert] = ask.planes as u8;
        }
    }

    /// Buys refinements, most valuable first, as long as they are worth more than the planes they evict.
    fn buy(&self, state: &mut State, layer: usize, asks: &mut [Ask], reads: &mut Vec<(usize, usize)>) {
        let (quality, limit) = (state.quality, self.options.refinement_bytes);
        let home = state.home(layer);
        let stored = home.cache.planes_most();
        let list =
            offers(asks, stored, self.options.order, quality, limit.is_some(), |e| home.table.errors[e]);
        let mut bytes = 0u64;
        for offer in list {
            let ask = &mut asks[offer.ask];
            let home = state.home(layer);
            if home.at_most(ask.expert, offer.plane + 1) == offer.plane {
                continue;
            }
            let cost = home.table.plane_bytes(offer.plane) as u64;
            if ask.planes != offer.plane || limit.is_some_and(|limit| bytes + cost > limit as u64) {
                continue;
            }
            let value = home.cache.value(ask.expert, offer.plane);
            if !self.make_room(state, layer, ask.expert, value) {
                continue;
            }
            reads.push((ask.expert, self.expect(state, layer, ask.expert)));
            bytes += cost;
            ask.planes += 1;
            state.home(layer).keep[ask.expert] = ask.planes as u8;
        }
    }

    /// Evicts planes of less than `value` until an expert's next plane fits; `false` if they do not suffice.
    pub(super) fn make_room(&self, state: &mut State, layer: usize, expert: usize, value: f32) -> bool {
        loop {
            let home = state.home(layer);
            let have = home.cache.planes(expert);
            if home.cache.free() >= home.cache.bytes(have, have + 1) {
                return true;
            }
            let Some((victim, plane, least)) = home.cache.coldest(&home.keep) else { return false };
            if least >= value {
                return false;
            }
            if home.reading(victim, plane) {
                // It was prefetched and its read has not completed yet.
                self.wait_for_any(state);
                continue;
            }
            home.give_up(victim);
            log::trace!("layer {layer}: plane {plane} of expert {victim} gives way");
            state.stats.note([layer, victim, plane]);
            if plane == 0 {
                state.stats.evictions += 1;
            } else {
                state.stats.downgrades += 1;
            }
        }
    }

    /// Waits for a read of another serving, which will handle a failure itself.
    pub(super) fn wait_for_any(&self, state: &mut State) {
        if self.wait(state).is_err() {
            self.take_back(state);
        }
    }
}
