//! The memory of one layer's experts: which slab holds which plane, and the views through which kernels read
//! the weights.
//!
//! [`LayerCache`] counts and `sched` decides what should be resident; this file only stores. A lane owns a
//! slab while it is read, and a computation borrows a slab through `views`. Neither slab can be evicted or
//! moved; the types enforce it. On a device, an expert has a slot there with room for all its planes, and
//! slabs are only staging (`staging.rs`).

mod resize;

use super::Verify;
use super::lanes::Request;
use crate::bytes::Bytes;
use crate::cache::{LayerCache, Worth};
use crate::error::Result;
use crate::experts::{Expert, LayerExperts};
use crate::quant::{Level, PLANES};
use crate::store::{Arena, End, Room, Slab};
use std::collections::HashMap;
use std::sync::Arc;

/// The location of a plane.
enum Slot {
    Empty,
    /// A lane has the slab.
    Reading,
    Loaded(Arc<Slab>),
    /// Only the device has it.
    Sent,
}

/// The memory for the planes.
enum Memory {
    Host(Arena),
    Device {
        /// Indexed by expert: its slot.
        places: Vec<Option<u32>>,
        free: Vec<u32>,
    },
}

/// The plane whose slab lies at an offset.
#[derive(Clone, Copy)]
enum Place {
    Loaded(usize, usize),
    New(usize),
}

/// One layer's experts in memory.
pub(super) struct Home {
    pub(super) table: LayerExperts,
    pub(super) cache: LayerCache,
    /// Indexed by expert: how many of its planes may not be evicted now.
    pub(super) keep: Vec<u8>,
    /// The number of stored planes of each expert.
    stored: Vec<u8>,
    memory: Memory,
    slots: Vec<[Slot; PLANES]>,
    /// Indexed by expert: one bit for every plane that was read successfully.
    seen: Vec<u8>,
    /// Indexed by expert: planes read so far, for [`super::Held`].
    pub(super) reads: Vec<u32>,
    /// Experts as kernels read them, with their number of planes. Created at first use and kept until one of
    /// the expert's planes changes.
    views: Vec<Option<(usize, Expert)>>,
}

impl Home {
    /// A layer with `capacity` bytes for slabs, which are aligned to `granule`.
    pub(super) fn new(
        table: LayerExperts,
        capacity: usize,
        granule: usize,
        worth: Vec<Worth>,
    ) -> Result<Home> {
        let bytes = (0..table.planes.len()).map(|p| table.plane_bytes(p).next_multiple_of(granule)).collect();
        let capacity = capacity / granule * granule;
        let memory = Memory::Host(Arena::new(capacity, granule)?);
        Ok(Home::with(table, LayerCache::new(capacity, bytes, worth), memory))
    }

    /// A layer whose experts are on a device, in `capacity` bytes there, with planes up to `level`. A base
    /// takes a slot with room for all planes, so the planes above it take no space. All planes are lost with
    /// the slot, so all have the same worth.
    pub(super) fn on_device(table: LayerExperts, capacity: usize, level: Level) -> Home {
        let (count, planes) = (table.count(), level.planes().min(table.planes.len()));
        let places = (capacity / table.device_bytes(level)).min(count);
        let mut bytes = vec![0; planes];
        bytes[0] = table.device_bytes(level);
        let cache = LayerCache::new(places * bytes[0], bytes, vec![[1.0; PLANES]; count]);
        let free = (0..places as u32).rev().collect();
        Home::with(table, cache, Memory::Device { places: vec![None; count], free })
    }

    fn with(table: LayerExperts, cache: LayerCache, memory: Memory) -> Home {
        let count = table.count();
        Home {
            cache,
            keep: vec![0; count],
            stored: (0..count).map(|e| table.stored(e) as u8).collect(),
            memory,
            slots: (0..count).map(|_| std::array::from_fn(|_| Slot::Empty)).collect(),
            seen: vec![0; count],
            reads: vec![0; count],
            views: vec![None; count],
            table,
        }
    }

    /// Bytes of memory on the host.
    pub(super) fn host_bytes(&self) -> usize {
        match &self.memory {
            Memory::Host(arena) => arena.bytes(),
            Memory::Device { .. } => 0,
        }
    }

    /// The number of planes that an expert wanted at `floor` keeps while room is made for others. On a
    /// device, evicting planes above the floor frees nothing, so all are kept.
    pub(super) fn kept(&self, floor: usize) -> u8 {
        match self.memory {
            Memory::Host(_) => floor as u8,
            Memory::Device { .. } => PLANES as u8,
        }
    }

    /// Whether a plane is being read.
    pub(super) fn reading(&self, expert: usize, plane: usize) -> bool {
        matches!(self.slots[expert][plane], Slot::Reading)
    }

    /// Whether the first `planes` of an expert are all in memory.
    pub(super) fn loaded(&self, expert: usize, planes: usize) -> bool {
        self.slots[expert][..planes].iter().all(|slot| matches!(slot, Slot::Loaded(_) | Slot::Sent))
    }

    /// Called when the device has the first `planes` of an expert: frees their slabs.
    pub(super) fn sent(&mut self, expert: usize, planes: usize) {
        for slot in &mut self.slots[expert][..planes] {
            if matches!(slot, Slot::Loaded(_)) {
                *slot = Slot::Sent;
                self.views[expert] = None;
            }
        }
    }

    /// Evicts every plane that the device does not have, and those above it. None may be in flight.
    pub(super) fn give_up_unsent(&mut self) {
        for expert in 0..self.slots.len() {
            let sent = self.slots[expert].iter().take_while(|slot| matches!(slot, Slot::Sent)).count();
            while self.cache.planes(expert) > sent {
                self.give_up(expert);
            }
        }
    }

    /// Evicts everything. Nothing may be in flight.
    pub(super) fn clear(&mut self) {
        for expert in 0..self.slots.len() {
            while self.cache.planes(expert) > 0 {
                self.give_up(expert);
            }
        }
    }

    /// Evicts the top plane of an expert, which must not be in flight, and returns its index.
    pub(super) fn give_up(&mut self, expert: usize) -> usize {
        let plane = self.cache.drop_top(expert);
        self.views[expert] = None;
        assert!(!self.reading(expert, plane), "a plane under way is not given up");
        self.slots[expert][plane] = Slot::Empty;
        if let (0, Memory::Device { places, free }) = (plane, &mut self.memory) {
            free.extend(places[expert].take());
        }
        plane
    }

    /// Marks the next plane of an expert as in flight and returns its index. There must be room for it; its
    /// slab comes from [`Home::slabs`].
    pub(super) fn expect(&mut self, expert: usize) -> usize {
        let plane = self.cache.add_next(expert);
        self.reads[expert] = self.reads[expert].wrapping_add(1);
        self.views[expert] = None;
        self.slots[expert][plane] = Slot::Reading;
        if let (0, Memory::Device { places, free }) = (plane, &mut self.memory) {
            places[expert] = free.pop();
        }
        plane
    }

    /// Slabs for planes that [`Home::expect`] marked, in their order. `None` if slabs that a lane is filling
    /// lie between the free pieces; the free bytes always suffice. `moved` counts the bytes that were moved.
    pub(super) fn slabs(&mut self, planes: &[(usize, usize)], moved: &mut u64) -> Option<Vec<Slab>> {
        let mut slabs = Vec::with_capacity(planes.len());
        for &(_, plane) in planes {
            let Memory::Host(arena) = &self.memory else { return None };
            let len = self.table.plane_bytes(plane);
            // Bases go low, refinements high, so that the gaps they leave fit planes of the same kind.
            let end = if plane == 0 { End::Low } else { End::High };
            let slab = match arena.alloc(len, end) {
                Some(slab) => slab,
                None => {
                    self.make_room(len, &mut slabs, moved)?;
                    let Memory::Host(arena) = &self.memory else { return None };
                    arena.alloc(len, end)?
                }
            };
            slabs.push(slab);
        }
        Some(slabs)
    }

    /// Merges free pieces until `len` bytes fit, moving as few bytes as possible. It may move loaded slabs,
    /// and `more`: new slabs that are not being filled yet.
    fn make_room(&mut self, len: usize, more: &mut [Slab], moved: &mut u64) -> Option<()> {
        let mut places: HashMap<usize, Place> =
            more.iter().enumerate().map(|(i, slab)| (slab.offset(), Place::New(i))).collect();
        for (e, slots) in self.slots.iter().enumerate() {
            for (p, slot) in slots.iter().enumerate() {
                if let Slot::Loaded(slab) = slot {
                    places.insert(slab.offset(), Place::Loaded(e, p));
                }
            }
        }
        let Memory::Host(arena) = &self.memory else { return None };
        let mut change = |offset: usize, change: &dyn Fn(&mut Slab)| match places[&offset] {
            Place::New(i) => change(&mut more[i]),
            Place::Loaded(e, p) => {
                self.views[e] = None;
                let Slot::Loaded(slab) = &mut self.slots[e][p] else { return };
                let slab = Arc::get_mut(slab).expect("nothing is computed while room is made");
                change(slab);
                *moved += slab.len() as u64;
            }
        };
        match arena.room(len, &|at| places.contains_key(&at))? {
            Room::Slide(slabs) => slabs.into_iter().for_each(|offset| change(offset, &Slab::slide)),
            Room::Jump { slab, to } => change(slab, &|slab| slab.jump(to)),
        }
        Some(())
    }

    /// Whether a plane has never been read yet.
    pub(super) fn first_read(&self, expert: usize, plane: usize) -> bool {
        self.seen[expert] & 1 << plane == 0
    }

    /// The request for reading a plane into a slab.
    pub(super) fn request(
        &self,
        layer: usize,
        expert: usize,
        plane: usize,
        slab: Slab,
        verify: Verify,
    ) -> Request {
        let verify = match verify {
            Verify::Always => true,
            Verify::First => self.first_read(expert, plane),
            Verify::Never => false,
        };
        let stored = self.table.planes[plane].slab(expert);
        let (offset, checksum) = stored.expect("only planes that are stored are expected");
        Request { layer, expert, plane, offset, checksum: verify.then_some(checksum), slab }
    }

    /// Stores a plane that has been read.
    pub(super) fn landed(&mut self, expert: usize, plane: usize, slab: Arc<Slab>) {
        debug_assert!(self.reading(expert, plane));
        self.slots[expert][plane] = Slot::Loaded(slab);
        self.seen[expert] |= 1 << plane;
    }

    /// Drops a plane that could not be read, and the planes above it. None of those may be in flight.
    pub(super) fn failed(&mut self, expert: usize, plane: usize) {
        if self.reading(expert, plane) {
            self.slots[expert][plane] = Slot::Empty;
        }
        while self.cache.planes(expert) > plane {
            self.give_up(expert);
        }
    }

    /// Creates the view of an expert with its first `planes`, which must be loaded.
    pub(super) fn prepare(&mut self, expert: usize, planes: usize) -> Result<()> {
        if self.views[expert].as_ref().is_none_or(|(seen, _)| *seen != planes) {
            let slabs: Vec<Bytes> = (self.slots[expert][..planes].iter())
                .filter_map(|slot| match slot {
                    Slot::Loaded(slab) => Some(Bytes::new(slab.clone())),
                    Slot::Sent => Some(Bytes::default()),
                    Slot::Reading | Slot::Empty => None,
                })
                .collect();
            assert_eq!(slabs.len(), planes, "an expert is computed when its planes are there");
            let place = match &self.memory {
                Memory::Host(_) => None,
                Memory::Device { places, .. } => places[expert],
            };
            self.views[expert] = Some((planes, self.table.view_at(expert, &slabs, place)?));
        }
        Ok(())
    }

    /// The view that [`Home::prepare`] created.
    pub(super) fn view(&self, expert: usize) -> &Expert {
        &self.views[expert].as_ref().expect("it was prepared").1
    }

    /// The number of planes that an expert has if `planes` are wanted: at most those that are stored.
    pub(super) fn at_most(&self, expert: usize, planes: usize) -> usize {
        planes.min(self.stored[expert].into())
    }

    /// Whether an expert has all planes it is computed with if `floor` is wanted.
    pub(super) fn has_floor(&self, expert: usize, floor: usize) -> bool {
        self.cache.planes(expert) >= self.at_most(expert, floor)
    }

    /// Bytes of an expert with all planes of a level.
    pub(super) fn bytes(&self, level: Level) -> usize {
        self.cache.bytes(0, level.planes())
    }
}
