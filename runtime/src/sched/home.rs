//! The memory of one layer's experts: which slab holds which plane, and the weights seen through them.
//!
//! Says nothing about what should be resident; [`LayerCache`] counts and `sched` decides. A slab that is being read
//! belongs to a lane, a slab that is computed with is lent out through `views`: neither can be given up or moved, and the
//! types see to it.

use crate::bytes::Bytes;
use crate::cache::{LayerCache, Worth};
use crate::error::Result;
use crate::experts::{Expert, LayerExperts};
use crate::quant::{Level, PLANES};
use crate::store::{Arena, End, Slab};
use std::collections::HashMap;
use std::sync::Arc;

/// Where a plane is.
enum Slot {
    Empty,
    /// A lane has the slab.
    Reading,
    Loaded(Arc<Slab>),
}

/// Whose slab lies somewhere.
#[derive(Clone, Copy)]
enum Place {
    Loaded(usize, usize),
    New(usize),
}

/// One layer's experts in memory.
pub(super) struct Home {
    pub(super) table: LayerExperts,
    pub(super) cache: LayerCache,
    /// Planes of each expert that may not be given up now.
    pub(super) keep: Vec<u8>,
    arena: Arena,
    slots: Vec<[Slot; PLANES]>,
    /// By expert, one bit for every plane that was read successfully.
    seen: Vec<u8>,
    /// Experts as kernels read them, with the number of planes seen; made when first needed and kept until a plane of
    /// theirs changes.
    views: Vec<Option<(usize, Expert)>>,
}

impl Home {
    /// A layer with `capacity` bytes for slabs, which lie at multiples of `granule`.
    pub(super) fn new(
        table: LayerExperts,
        capacity: usize,
        granule: usize,
        worth: Vec<Worth>,
    ) -> Result<Home> {
        let count = table.count();
        let bytes = (0..table.planes.len()).map(|p| table.plane_bytes(p).next_multiple_of(granule)).collect();
        let capacity = capacity / granule * granule;
        Ok(Home {
            cache: LayerCache::new(capacity, bytes, worth),
            keep: vec![0; count],
            arena: Arena::new(capacity, granule)?,
            slots: (0..count).map(|_| std::array::from_fn(|_| Slot::Empty)).collect(),
            seen: vec![0; count],
            views: vec![None; count],
            table,
        })
    }

    /// Whether a plane is being read.
    pub(super) fn reading(&self, expert: usize, plane: usize) -> bool {
        matches!(self.slots[expert][plane], Slot::Reading)
    }

    /// Whether the first `planes` of an expert are all in memory.
    pub(super) fn loaded(&self, expert: usize, planes: usize) -> bool {
        self.slots[expert][..planes].iter().all(|slot| matches!(slot, Slot::Loaded(_)))
    }

    /// Gives up the top plane of an expert, which must not be under way, and returns which it was.
    pub(super) fn give_up(&mut self, expert: usize) -> usize {
        let plane = self.cache.drop_top(expert);
        self.views[expert] = None;
        assert!(!self.reading(expert, plane), "a plane under way is not given up");
        self.slots[expert][plane] = Slot::Empty;
        plane
    }

    /// Counts the next plane of an expert, for which there is room, as under way and returns which it is. Its slab comes
    /// from [`Home::slabs`].
    pub(super) fn expect(&mut self, expert: usize) -> usize {
        let plane = self.cache.add_next(expert);
        self.views[expert] = None;
        self.slots[expert][plane] = Slot::Reading;
        plane
    }

    /// Slabs for planes that were announced by [`Home::expect`], in their order. `None` where planes that a lane has stand
    /// between the free pieces; there are enough of them otherwise. `moved` counts bytes that had to be moved.
    pub(super) fn slabs(&mut self, planes: &[(usize, usize)], moved: &mut u64) -> Option<Vec<Slab>> {
        let mut slabs = Vec::with_capacity(planes.len());
        for &(_, plane) in planes {
            let len = self.table.plane_bytes(plane);
            // Bases from below, refinements from above: each find again what their like has left.
            let end = if plane == 0 { End::Low } else { End::High };
            let slab = match self.arena.alloc(len, end) {
                Some(slab) => slab,
                None => {
                    self.make_room(len, &mut slabs, moved)?;
                    self.arena.alloc(len, end)?
                }
            };
            slabs.push(slab);
        }
        Some(slabs)
    }

    /// Brings free pieces together until `len` bytes fit, moving as little as can be: slabs that are loaded, and `more`,
    /// which are not read into yet.
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
        for offset in self.arena.room_by_sliding(len, &|at| places.contains_key(&at))? {
            match places[&offset] {
                Place::New(i) => more[i].slide(),
                Place::Loaded(e, p) => {
                    self.views[e] = None;
                    let Slot::Loaded(slab) = &mut self.slots[e][p] else { continue };
                    let slab = Arc::get_mut(slab).expect("nothing is computed while room is made");
                    slab.slide();
                    *moved += slab.len() as u64;
                }
            }
        }
        Some(())
    }

    /// Whether a plane has never been read yet.
    pub(super) fn first_read(&self, expert: usize, plane: usize) -> bool {
        self.seen[expert] & 1 << plane == 0
    }

    /// A plane has been read.
    pub(super) fn landed(&mut self, expert: usize, plane: usize, slab: Arc<Slab>) {
        debug_assert!(self.reading(expert, plane));
        self.slots[expert][plane] = Slot::Loaded(slab);
        self.seen[expert] |= 1 << plane;
    }

    /// A plane could not be read: it and those above it are not there. None of them may be under way.
    pub(super) fn failed(&mut self, expert: usize, plane: usize) {
        if self.reading(expert, plane) {
            self.slots[expert][plane] = Slot::Empty;
        }
        while self.cache.planes(expert) > plane {
            self.give_up(expert);
        }
    }

    /// Makes the view of an expert with its first `planes`, which are loaded.
    pub(super) fn prepare(&mut self, expert: usize, planes: usize) -> Result<()> {
        if self.views[expert].as_ref().is_none_or(|(seen, _)| *seen != planes) {
            let slabs: Vec<Bytes> = (self.slots[expert][..planes].iter())
                .filter_map(|slot| match slot {
                    Slot::Loaded(slab) => Some(Bytes::new(slab.clone())),
                    _ => None,
                })
                .collect();
            assert_eq!(slabs.len(), planes, "an expert is computed when its planes are there");
            self.views[expert] = Some((planes, self.table.view(expert, &slabs)?));
        }
        Ok(())
    }

    /// The view that [`Home::prepare`] made.
    pub(super) fn view(&self, expert: usize) -> &Expert {
        &self.views[expert].as_ref().expect("it was prepared").1
    }

    /// Bytes of an expert at a level.
    pub(super) fn bytes(&self, level: Level) -> usize {
        self.cache.bytes(0, level.planes())
    }
}
