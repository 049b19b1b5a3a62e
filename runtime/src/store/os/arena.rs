//! A fixed block of memory that is allocated in slabs.
//!
//! An arena reserves its memory once and never grows (R1); a part of it may go back to the system for a
//! while. A [`Slab`] owns its range exclusively, so a slab that is borrowed for reading can be neither
//! written nor moved: the borrow checker enforces R4. An arena does not depend on the contents of slabs.

use super::give_back::{give_back, take_again};
use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory for slabs.
pub struct Arena(Arc<Inner>);

struct Inner {
    /// Owns the mapping; only its address is used.
    _map: MmapMut,
    start: *mut u8,
    len: usize,
    granule: usize,
    /// New slabs lie below this; the system may have the memory above it. Changed with the lock held.
    limit: AtomicUsize,
    /// Start and length of every slab's range: disjoint, and within the memory.
    taken: Mutex<BTreeMap<usize, usize>>,
}

// SAFETY: `start` is the address of the mapping that `Inner` owns; all access to the memory is through a
// `Slab`, and slabs own disjoint ranges.
unsafe impl Send for Inner {}
// SAFETY: as above; the table of ranges is behind a lock.
unsafe impl Sync for Inner {}

impl Inner {
    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arena {
    /// An arena of `len` bytes, allocated in multiples of `granule` bytes (a power of two).
    ///
    /// # Errors
    /// `Invalid` if the system does not provide the memory.
    pub fn new(len: usize, granule: usize) -> Result<Arena> {
        assert!(granule.is_power_of_two());
        let len = len.next_multiple_of(granule);
        let mut map = MmapMut::map_anon(len.max(1))
            .map_err(|e| Error::Invalid(format!("no memory for a cache of {} MB: {e}", len >> 20)))?;
        let start = map.as_mut_ptr();
        // SAFETY: the mapping is private, anonymous and writable, and nothing else uses it yet.
        unsafe { take_again(start, len) };
        let (limit, taken) = (AtomicUsize::new(len), Mutex::default());
        Ok(Arena(Arc::new(Inner { _map: map, start, len, granule, limit, taken })))
    }

    /// Allocates a slab of `len` bytes at the `end` of a free piece: of the pieces that are long enough, the one
    /// nearest that end of the arena. `None` if no free piece is long enough. If slabs of one size always use the
    /// same end, they lie together. The gaps they leave, alone or merged, then fit the next slab of that size.
    pub fn alloc(&self, len: usize, end: End) -> Option<Slab> {
        let size = self.size(len)?;
        let mut taken = self.0.taken();
        let limit = self.0.limit();
        let mut found: Option<(usize, usize)> = None;
        let mut at = 0;
        for (start, n) in taken.iter().map(|(&start, &n)| (start, n)).chain([(limit, 0)]) {
            let room = start.min(limit).saturating_sub(at);
            if room >= size && (end == End::High || found.is_none()) {
                found = Some((room, at));
            }
            at = start + n;
        }
        let (room, start) = found?;
        let offset = match end {
            End::Low => start,
            End::High => start + room - size,
        };
        taken.insert(offset, size);
        drop(taken);
        Some(Slab { arena: self.0.clone(), offset, len, size })
    }

    /// `len` in whole granules.
    fn size(&self, len: usize) -> Option<usize> {
        Some(len.checked_next_multiple_of(self.0.granule)?.max(self.0.granule))
    }

    /// The cheapest way to make room for `len` bytes in one piece. Only slabs that are `movable` (by offset)
    /// are moved. `None` if no moves make room, or a slab lies beyond the limit.
    pub fn room(&self, len: usize, movable: &dyn Fn(usize) -> bool) -> Option<Room> {
        let size = self.size(len)?;
        let taken = self.0.taken();
        let limit = self.0.limit();
        let slabs: Vec<(usize, usize)> = taken.iter().map(|(&start, &n)| (start, n)).collect();
        drop(taken);
        if slabs.last().is_some_and(|(start, n)| start + n > limit) {
            return None;
        }
        // Start and length of the piece before slab `i`. The last piece ends at the arena's limit.
        let begin = |i: usize| if i == 0 { 0 } else { slabs[i - 1].0 + slabs[i - 1].1 };
        let gap = |i: usize| slabs.get(i).map_or(limit, |s| s.0) - begin(i);
        // A window of movable slabs `from..to` with the gaps around them. Both ends only ever increase.
        let mut best: Option<(usize, usize, usize)> = None;
        let (mut from, mut room, mut cost) = (0, gap(0), 0);
        for to in 0..=slabs.len() {
            if to > 0 {
                if !movable(slabs[to - 1].0) {
                    (from, room, cost) = (to, gap(to), 0);
                } else {
                    room += gap(to);
                    cost += slabs[to - 1].1;
                }
            }
            while from < to && room - gap(from) >= size {
                room -= gap(from);
                cost -= slabs[from].1;
                from += 1;
            }
            if room >= size && best.is_none_or(|(least, ..)| cost < least) {
                best = Some((cost, from, to));
            }
        }
        // One slab whose move would merge two gaps into enough room, and the smallest other gap that fits it.
        let jumps =
            (0..slabs.len()).filter(|&i| movable(slabs[i].0) && gap(i) + slabs[i].1 + gap(i + 1) >= size);
        let jump = jumps.min_by_key(|&i| slabs[i].1).and_then(|i| {
            let others = (0..=slabs.len()).filter(|&g| g != i && g != i + 1 && gap(g) >= slabs[i].1);
            let to = others.min_by_key(|&g| gap(g))?;
            Some((slabs[i].1, Room::Jump { slab: slabs[i].0, to: begin(to) + gap(to) - slabs[i].1 }))
        });
        match (best, jump) {
            (Some((cost, ..)), Some((less, jump))) if less < cost => Some(jump),
            (None, jump) => jump.map(|(_, jump)| jump),
            (Some((_, from, to)), _) => Some(Room::Slide(slabs[from..to].iter().map(|s| s.0).collect())),
        }
    }

    /// Restricts new slabs to the first `len` bytes, in whole granules; slabs beyond stay where they are.
    /// Returns `false` and changes nothing if `len` is more than the arena's initial size.
    pub fn limit(&self, len: usize) -> bool {
        let taken = self.0.taken();
        let (old, new) = (self.0.limit(), len / self.0.granule * self.0.granule);
        if new > self.0.len {
            return false;
        }
        self.0.limit.store(new, Ordering::Relaxed);
        if new > old {
            // SAFETY: the range is within the arena's mapping, which is private, anonymous and writable.
            unsafe { take_again(self.0.start.add(old), new - old) };
        }
        drop(taken);
        true
    }

    /// Gives the memory beyond the limit back to the system. Returns `false` if a slab still lies there, or
    /// the system does not take memory back.
    pub fn give_back(&self) -> bool {
        let taken = self.0.taken();
        let limit = self.0.limit();
        if taken.range(..).next_back().is_some_and(|(start, len)| start + len > limit) {
            return false;
        }
        // SAFETY: the range is within the arena's mapping, which is private, anonymous and writable. No slab
        // owns a part of it, and while the lock is held none can be allocated there.
        let given = unsafe { give_back(self.0.start.add(limit), self.0.len - limit) };
        drop(taken);
        given
    }

    /// Bytes that slabs may occupy.
    pub fn bytes(&self) -> usize {
        self.0.limit()
    }

    /// Bytes that no slab owns, possibly in several pieces.
    pub fn free_bytes(&self) -> usize {
        self.0.limit().saturating_sub(self.0.taken().values().sum::<usize>())
    }
}

/// Moves that make room for a slab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// Slabs to [`Slab::slide`], by their offsets in ascending order.
    Slide(Vec<usize>),
    /// Move the slab at offset `slab` to another offset ([`Slab::jump`]).
    Jump {
        /// The current offset.
        slab: usize,
        /// The new offset.
        to: usize,
    },
}

/// The end of a free piece at which a slab is placed. Slabs of one size at one end leave gaps that fit the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The lower.
    Low,
    /// The upper.
    High,
}

/// Exclusively owned bytes of an arena. Dropping the slab frees them.
pub struct Slab {
    arena: Arc<Inner>,
    offset: usize,
    len: usize,
    /// `len` in whole granules: the owned range.
    size: usize,
}

impl Slab {
    /// The offset in the arena; it orders slabs.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Moves the slab with its contents down to the end of the slab before it.
    pub fn slide(&mut self) {
        let mut taken = self.arena.taken();
        let to = taken.range(..self.offset).next_back().map_or(0, |(start, len)| start + len);
        if to == self.offset {
            return;
        }
        taken.remove(&self.offset);
        taken.insert(to, self.size);
        // SAFETY: source and destination are within the mapping. The source is this slab's own range,
        // borrowed exclusively by `&mut self`. No slab owns a byte between `to` and the source, and the lock
        // is held, so none can be allocated there meanwhile.
        unsafe { std::ptr::copy(self.arena.start.add(self.offset), self.arena.start.add(to), self.len) };
        self.offset = to;
    }

    /// Moves the slab with its contents to offset `to`, inside a free piece that can hold all of it.
    ///
    /// # Panics
    /// If another slab owns a part of that range.
    pub fn jump(&mut self, to: usize) {
        let mut taken = self.arena.taken();
        let below = taken.range(..to + self.size).next_back().map_or(0, |(start, len)| start + len);
        assert!(below <= to && to + self.size <= self.arena.len, "a slab jumps to where nothing is");
        taken.remove(&self.offset);
        taken.insert(to, self.size);
        // SAFETY: source and destination are within the mapping and disjoint, because the assertion found no
        // slab in the destination. The source is this slab's own range, borrowed exclusively by `&mut self`;
        // the lock is held, so no slab can be allocated in the destination meanwhile.
        unsafe {
            let start = self.arena.start;
            std::ptr::copy_nonoverlapping(start.add(self.offset), start.add(to), self.len);
        }
        self.offset = to;
    }

    /// Splits the slab into pieces of `len` bytes (rounded up to whole granules); the last one may be
    /// shorter. Different threads may own the pieces.
    pub fn cut(mut self, len: usize) -> Vec<Slab> {
        let len = len.max(1).next_multiple_of(self.arena.granule);
        let mut taken = self.arena.taken();
        let piece = |at: usize| {
            let size = if at + len < self.len { len } else { self.size - at };
            taken.insert(self.offset + at, size);
            Slab { arena: self.arena.clone(), offset: self.offset + at, len: len.min(self.len - at), size }
        };
        let pieces = (0..self.len.max(1)).step_by(len).map(piece).collect();
        drop(taken);
        // The pieces own the range now.
        self.size = 0;
        pieces
    }

    /// Joins the pieces of [`Slab::cut`] to one slab again, in their order.
    ///
    /// # Panics
    /// If they do not lie one after another.
    pub fn join(pieces: Vec<Slab>) -> Slab {
        let mut pieces = pieces.into_iter();
        let mut whole = pieces.next().expect("a slab has pieces");
        for mut piece in pieces {
            let mut taken = whole.arena.taken();
            assert!(Arc::ptr_eq(&whole.arena, &piece.arena) && piece.offset == whole.offset + whole.size);
            taken.remove(&piece.offset);
            whole.len = whole.size + piece.len;
            whole.size += piece.size;
            taken.insert(whole.offset, whole.size);
            drop(taken);
            piece.size = 0;
        }
        whole
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // Size zero means that other slabs own the range now.
        if self.size > 0 {
            self.arena.taken().remove(&self.offset);
        }
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
mod tests;
