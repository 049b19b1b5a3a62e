//! A fixed piece of memory that is lent out in slabs.
//!
//! An arena's memory is asked for once and never grows (R1). A [`Slab`] owns its range of it exclusively, so a slab that
//! somebody reads can be neither written nor moved: the borrow checker sees to R4. The arena knows nothing of what slabs
//! hold.

use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory for slabs.
pub struct Arena(Arc<Inner>);

struct Inner {
    /// Keeps the memory; only its address is used.
    _map: MmapMut,
    start: *mut u8,
    len: usize,
    granule: usize,
    /// Start and length of every range that a slab owns: disjoint, and within the memory.
    taken: Mutex<BTreeMap<usize, usize>>,
}

// SAFETY: `start` is the address of the mapping that `Inner` owns; whoever touches the memory does so through a `Slab`,
// and slabs own disjoint ranges.
unsafe impl Send for Inner {}
// SAFETY: as above; the table of ranges is behind a lock.
unsafe impl Sync for Inner {}

impl Inner {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arena {
    /// `len` bytes, handed out in multiples of `granule` bytes (a power of two).
    ///
    /// # Errors
    /// `Invalid` where the system has no such memory.
    pub fn new(len: usize, granule: usize) -> Result<Arena> {
        assert!(granule.is_power_of_two());
        let len = len.next_multiple_of(granule);
        let mut map = MmapMut::map_anon(len.max(1))
            .map_err(|e| Error::Invalid(format!("no memory for a cache of {} MB: {e}", len >> 20)))?;
        // Large pages save address translation in the kernels' loops; a system without them is merely slower.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        Ok(Arena(Arc::new(Inner { _map: map, start, len, granule, taken: Mutex::default() })))
    }

    /// A slab of `len` bytes in the smallest free piece that takes it (slabs come in few sizes, so that pieces fit again);
    /// `None` where it fits nowhere.
    pub fn alloc(&self, len: usize) -> Option<Slab> {
        let size = len.checked_next_multiple_of(self.0.granule)?.max(self.0.granule);
        let mut taken = self.0.taken();
        let mut best: Option<(usize, usize)> = None;
        let mut at = 0;
        for (start, n) in taken.iter().map(|(&start, &n)| (start, n)).chain([(self.0.len, 0)]) {
            let room = start - at;
            if room >= size && best.is_none_or(|(least, _)| room < least) {
                best = Some((room, at));
            }
            at = start + n;
        }
        let (_, offset) = best?;
        taken.insert(offset, size);
        drop(taken);
        Some(Slab { arena: self.0.clone(), offset, len, size })
    }

    /// Bytes that no slab owns, perhaps in several pieces.
    pub fn free_bytes(&self) -> usize {
        self.0.len - self.0.taken().values().sum::<usize>()
    }
}

/// Exclusively owned bytes of an arena; dropping it gives them back.
pub struct Slab {
    arena: Arc<Inner>,
    offset: usize,
    len: usize,
    /// `len` in whole granules: what it owns.
    size: usize,
}

impl Slab {
    /// Its place in the arena: orders slabs.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Moves the slab, contents and all, down to the end of the one before it. Doing so with all slabs of an arena in
    /// ascending order brings the free pieces together.
    pub fn slide(&mut self) {
        let mut taken = self.arena.taken();
        let to = taken.range(..self.offset).next_back().map_or(0, |(start, len)| start + len);
        if to == self.offset {
            return;
        }
        taken.remove(&self.offset);
        taken.insert(to, self.size);
        // SAFETY: source and destination are within the mapping. The source is this slab's own range, borrowed
        // exclusively by `&mut self`; between `to` and the source nothing is owned by anybody, and the lock is held, so
        // nobody can come to own it meanwhile.
        unsafe { std::ptr::copy(self.arena.start.add(self.offset), self.arena.start.add(to), self.len) };
        self.offset = to;
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.arena.taken().remove(&self.offset);
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is within the mapping, which the `Arc` keeps; mapped memory is initialised (to zero); and no
        // other slab overlaps it, so writes need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.arena.start.add(self.offset), self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access to the range.
        unsafe { std::slice::from_raw_parts_mut(self.arena.start.add(self.offset), self.len) }
    }
}

impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_disjoint_come_back_and_slide() {
        let arena = Arena::new(8 * 512, 512).unwrap();
        let mut slabs: Vec<Slab> = (1..=4u8)
            .map(|i| {
                let mut s = arena.alloc(700).unwrap();
                s.fill(i);
                s
            })
            .collect();
        assert!(arena.alloc(1).is_none() && arena.free_bytes() == 0);
        drop(slabs.remove(2));
        drop(slabs.remove(0));
        assert!(arena.free_bytes() == 2048 && arena.alloc(1025).is_none(), "two holes, not one");
        slabs.iter_mut().for_each(Slab::slide);
        let mut big = arena.alloc(2048).unwrap();
        big.fill(9);
        assert!(slabs[0].iter().all(|&b| b == 2) && slabs[1].iter().all(|&b| b == 4));
        assert_eq!((slabs[0].offset(), slabs[1].offset(), big.offset()), (0, 1024, 2048));
        drop(slabs);
        drop(big);
        assert_eq!(arena.free_bytes(), 8 * 512);
        assert!(arena.alloc(8 * 512).is_some());
        assert!(arena.alloc(usize::MAX / 2).is_none());
    }
}
