//! The directory of a layer's experts: which planes are in memory, how hot each expert is, and what to evict.
//!
//! Bookkeeping only: no memory, no I/O, no clock. Each layer has its own [`LayerCache`] with its own share of
//! the bytes. Decoding visits the layers in order, so a common cache smaller than a token's working set would
//! evict every expert just before its next use. Decisions are functions of the calls (R3). The resident
//! planes of an expert are always a prefix of its planes (R4).

use crate::quant::PLANES;

/// The weight of a plane in evictions, beside its expert's heat: 1 for a plane that would be read again at
/// the next use, less for one that the policy can do without.
pub type Worth = [f32; PLANES];

/// One layer's experts.
#[derive(Clone, Debug)]
pub struct LayerCache {
    capacity: usize,
    used: usize,
    plane_bytes: Vec<usize>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    planes: usize,
    heat: f32,
    worth: Worth,
}

impl LayerCache {
    /// An empty cache of `capacity` bytes. Plane `p` of an expert takes `plane_bytes[p]`; `worth` has one
    /// entry per expert.
    pub fn new(capacity: usize, plane_bytes: Vec<usize>, worth: Vec<Worth>) -> LayerCache {
        let entries = worth.into_iter().map(|worth| Entry { planes: 0, heat: 0.0, worth }).collect();
        LayerCache { capacity, used: 0, plane_bytes, entries }
    }

    /// The most bytes that may be resident.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Changes the most bytes that may be resident.
    ///
    /// # Panics
    /// If more are in use.
    pub fn set_capacity(&mut self, capacity: usize) {
        assert!(self.used <= capacity, "the cache is over its share");
        self.capacity = capacity;
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes not in use.
    pub fn free(&self) -> usize {
        self.capacity - self.used
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.entries.len()
    }

    /// The most planes of an expert.
    pub fn planes_most(&self) -> usize {
        self.plane_bytes.len()
    }

    /// The number of an expert's resident planes.
    pub fn planes(&self, expert: usize) -> usize {
        self.entries[expert].planes
    }

    /// Bytes of planes `from..to` of an expert; planes that do not exist count as 0.
    pub fn bytes(&self, from: usize, to: usize) -> usize {
        self.plane_bytes.get(from..to.min(self.plane_bytes.len())).map_or(0, |planes| planes.iter().sum())
    }

    /// The decayed gate mass of an expert.
    pub fn heat(&self, expert: usize) -> f32 {
        self.entries[expert].heat
    }

    /// Sets the heat of an expert, for a warm start.
    pub fn set_heat(&mut self, expert: usize, heat: f32) {
        self.entries[expert].heat = heat;
    }

    /// Decays all heat. Called once per use of the layer.
    pub fn cool(&mut self, decay: f32) {
        self.entries.iter_mut().for_each(|e| e.heat *= decay);
    }

    /// Adds gate mass to an expert.
    pub fn warm(&mut self, expert: usize, mass: f32) {
        self.entries[expert].heat += mass;
    }

    /// The value of holding plane `p` of an expert.
    pub fn value(&self, expert: usize, p: usize) -> f32 {
        let e = &self.entries[expert];
        e.heat * e.worth[p]
    }

    /// The plane to evict first, with its value: the least valuable top plane among experts with more planes
    /// than `keep` protects. Ties go to the higher plane, then to the higher expert.
    pub fn coldest(&self, keep: &[u8]) -> Option<(usize, usize, f32)> {
        let mut best: Option<(usize, usize, f32)> = None;
        for (i, e) in self.entries.iter().enumerate() {
            if e.planes <= usize::from(keep[i]) {
                continue;
            }
            let (p, value) = (e.planes - 1, e.heat * e.worth[e.planes - 1]);
            if best.is_none_or(|(_, q, least)| value < least || (value == least && p >= q)) {
                best = Some((i, p, value));
            }
        }
        best
    }

    /// Evicts the top plane of an expert and returns its index.
    ///
    /// # Panics
    /// If the expert has none.
    pub fn drop_top(&mut self, expert: usize) -> usize {
        let e = &mut self.entries[expert];
        assert!(e.planes > 0, "expert {expert} has no plane to give up");
        e.planes -= 1;
        self.used -= self.plane_bytes[e.planes];
        e.planes
    }

    /// Adds the next plane of an expert and returns its index.
    ///
    /// # Panics
    /// If all planes are resident, or there is no room.
    pub fn add_next(&mut self, expert: usize) -> usize {
        let e = &mut self.entries[expert];
        assert!(e.planes < self.plane_bytes.len(), "expert {expert} has all its planes");
        let bytes = self.plane_bytes[e.planes];
        assert!(self.used + bytes <= self.capacity, "the cache is over its share");
        self.used += bytes;
        e.planes += 1;
        e.planes - 1
    }
}

#[cfg(test)]
mod tests;
