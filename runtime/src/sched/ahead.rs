//! Prefetches experts that the next layer will probably need, and those that were hot at the last use.

use super::staging::ToDevice;
use super::{State, Streamer};
use crate::error::Result;
use crate::experts::{Guess, Wanted};
use crate::quant::PLANES;

impl Streamer {
    /// Prefetches the floor of up to `most` experts that a layer may need, if that evicts only colder planes.
    pub(super) fn look_ahead(
        &self,
        state: &mut State,
        layer: usize,
        guess: Guess,
        most: usize,
    ) -> Result<()> {
        if state.homes.get(layer).is_none_or(Option::is_none) {
            return Ok(());
        }
        let mut wanted = std::mem::take(&mut state.guess);
        wanted.clear();
        guess(&mut wanted)?;
        wanted.sort_by(|a, b| b.gate.total_cmp(&a.gate).then(a.expert.cmp(&b.expert)));
        let floor = self.options.precision.floor().planes();
        let home = state.home(layer);
        home.keep.fill(0);
        wanted.iter().for_each(|w| home.keep[w.expert as usize] = PLANES as u8);
        let mut reads = Vec::new();
        let missing = |w: &&Wanted| !home.has_floor(w.expert as usize, floor);
        let missing: Vec<Wanted> = wanted.iter().filter(missing).take(most).copied().collect();
        'all: for w in missing {
            let expert = w.expert as usize;
            while !state.home(layer).has_floor(expert, floor) {
                // The value that its gate would give if the guess is right.
                let value = w.gate + state.home(layer).cache.heat(expert);
                if !self.make_room(state, layer, expert, value) {
                    continue 'all;
                }
                reads.push((expert, self.expect(state, layer, expert)));
            }
        }
        state.guess = wanted;
        // A failure here is not an error yet: the serving that needs the planes will report it.
        if let Ok(bytes) = self.submit(state, layer, &reads, true) {
            state.stats.bytes_ahead += bytes;
        }
        Ok(())
    }

    /// Loads experts at the floor, hottest first, until the layer's share is full.
    pub(super) fn load_hottest(
        &self,
        state: &mut State,
        layer: usize,
        heat: &[f32],
        send: ToDevice,
    ) -> Result<()> {
        let floor = self.options.precision.floor().planes();
        let mut order: Vec<usize> = (0..heat.len()).collect();
        order.sort_by(|&a, &b| heat[b].total_cmp(&heat[a]).then(a.cmp(&b)));
        let home = state.home(layer);
        home.keep.fill(PLANES as u8);
        heat.iter().enumerate().for_each(|(e, &h)| home.cache.set_heat(e, h));
        if state.staging.is_some() {
            order.retain(|&e| heat[e] > 0.0);
            return self.send_hottest(state, layer, &order, send);
        }
        let mut reads = Vec::new();
        for e in order.into_iter().filter(|&e| heat[e] > 0.0) {
            let home = state.home(layer);
            let (have, floor) = (home.cache.planes(e), home.at_most(e, floor));
            if have >= floor {
                continue;
            }
            if state.home(layer).cache.free() < state.home(layer).cache.bytes(have, floor) {
                break;
            }
            for _ in have..floor {
                reads.push((e, self.expect(state, layer, e)));
            }
        }
        state.stats.bytes_ahead += self.submit(state, layer, &reads, false)?;
        let mut failure = None;
        while state.pending > 0 {
            if let Err(fault) = self.wait(state) {
                failure.get_or_insert_with(|| self.read_error(fault.offset, fault.source));
            }
        }
        self.take_back(state);
        failure.map_or(Ok(()), Err)
    }
}
