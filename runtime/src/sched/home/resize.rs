//! Shrinks or grows a layer's memory while it holds experts.
//!
//! Shrinking evicts the coldest planes, moves the slabs above the new limit into the gaps, and gives the rest
//! of the memory back to the system. Growing reuses the old memory up to its first size. Beyond that, the
//! contents move to new memory piece by piece, and the old memory is given back as it empties. Runs between
//! two servings: no read and no computation is in flight.

use super::{Home, Memory, Slot};
use crate::error::Result;
use crate::quant::PLANES;
use crate::store::{Arena, End, Slab};
use std::sync::Arc;

/// The effects of a resize.
#[derive(Default)]
pub(in crate::sched) struct Resized {
    /// Bytes given back to the system.
    pub(in crate::sched) given_back: usize,
    /// Bytes moved in memory.
    pub(in crate::sched) moved: u64,
    /// Evictions by plane.
    pub(in crate::sched) gave_way: [u64; PLANES],
}

impl Home {
    /// Resizes to `capacity` bytes, or to the size of all planes if that is less, in multiples of `granule`.
    /// Does nothing on a device.
    ///
    /// # Errors
    /// `Invalid` if the system does not provide the memory; the cached planes stay.
    pub(in crate::sched) fn resize(&mut self, capacity: usize, granule: usize) -> Result<Resized> {
        let mut done = Resized::default();
        let all = self.cache.bytes(0, self.cache.planes_most()) * self.cache.experts();
        let capacity = (capacity / granule * granule).min(all);
        let Memory::Host(arena) = &self.memory else { return Ok(done) };
        let old = arena.bytes();
        self.keep.fill(0);
        while self.cache.used() > capacity {
            let Some((expert, ..)) = self.cache.coldest(&self.keep) else { break };
            done.gave_way[self.give_up(expert)] += 1;
        }
        if capacity < old {
            self.cache.set_capacity(capacity);
        }
        let Memory::Host(arena) = &self.memory else { return Ok(done) };
        let fits = arena.limit(capacity);
        if capacity < old {
            self.gather(capacity, granule, &mut done.moved);
            let Memory::Host(arena) = &self.memory else { return Ok(done) };
            if !arena.give_back() {
                self.move_to(Arena::new(capacity, granule)?, &mut done.moved);
            }
            done.given_back = old - capacity;
        } else if !fits {
            self.move_to(Arena::new(capacity, granule)?, &mut done.moved);
        }
        self.cache.set_capacity(capacity);
        Ok(done)
    }

    /// The loaded planes in order of their offsets: (offset, expert, plane).
    fn loaded_slabs(&self) -> Vec<(usize, usize, usize)> {
        let mut all = Vec::new();
        for (expert, slots) in self.slots.iter().enumerate() {
            for (plane, slot) in slots.iter().enumerate() {
                if let Slot::Loaded(slab) = slot {
                    all.push((slab.offset(), expert, plane));
                }
            }
        }
        all.sort_unstable();
        all
    }

    /// Moves the slabs above `limit` below it, if all fit there, with as few moves as possible.
    fn gather(&mut self, limit: usize, granule: usize, moved: &mut u64) {
        let slabs = self.loaded_slabs();
        for &(offset, expert, plane) in slabs.iter().rev() {
            let len = self.table.plane_bytes(plane);
            if offset + len.next_multiple_of(granule) <= limit {
                break;
            }
            let Memory::Host(arena) = &self.memory else { return };
            let Some(to) = arena.alloc(len, End::Low) else {
                // No single gap is long enough, but all together are.
                return self.slide_all(moved);
            };
            self.replace(expert, plane, to, moved);
        }
    }

    /// Slides every slab down to the one before it.
    fn slide_all(&mut self, moved: &mut u64) {
        for (offset, expert, plane) in self.loaded_slabs() {
            self.views[expert] = None;
            let Slot::Loaded(slab) = &mut self.slots[expert][plane] else { continue };
            let slab = Arc::get_mut(slab).expect("nothing is computed while memory is resized");
            slab.slide();
            if slab.offset() != offset {
                *moved += slab.len() as u64;
            }
        }
    }

    /// Moves everything to other memory, from the top, so that the old memory can be given back as it empties.
    fn move_to(&mut self, to: Arena, moved: &mut u64) {
        for (offset, expert, plane) in self.loaded_slabs().into_iter().rev() {
            let end = if plane == 0 { End::Low } else { End::High };
            let slab =
                to.alloc(self.table.plane_bytes(plane), end).expect("what was in memory fits more memory");
            self.replace(expert, plane, slab, moved);
            if let Memory::Host(arena) = &self.memory
                && arena.limit(offset)
            {
                arena.give_back();
            }
        }
        self.memory = Memory::Host(to);
    }

    /// Copies a plane to another slab.
    fn replace(&mut self, expert: usize, plane: usize, mut to: Slab, moved: &mut u64) {
        self.views[expert] = None;
        if let Slot::Loaded(slab) = &mut self.slots[expert][plane] {
            to.copy_from_slice(slab);
            *moved += to.len() as u64;
            *slab = Arc::new(to);
        }
    }
}
