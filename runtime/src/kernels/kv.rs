//! The layout of keys and values outside of a backend: in a saved session, and in copies between sessions.
//!
//! Each backend orders its caches for its own kernels. This layout is the CPU's, which copies it unchanged; a
//! GPU converts it. Numbers are little-endian, in the precision of the cache.

use std::ops::Range;

/// Positions whose keys are stored together.
pub const KV_BLOCK: usize = 16;

/// If a cache has fewer places than positions, it has a multiple of this many. Position `p` has place `p % places`.
pub const KV_TILE: usize = 64;

/// The shape of a layer's keys and values at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Values of a key.
    pub head_dim: usize,
    /// Values of a value.
    pub v_dim: usize,
    /// Bytes per number: 2 (half precision) or 4.
    pub number_bytes: usize,
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSide {
    /// `[heads, positions / 16, head_dim, 16]`; the unused lanes of the last block are zero.
    Keys,
    /// `[heads, positions, v_dim]`.
    Values,
}

/// A part of a layer's keys or values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPart {
    /// The layer's shape.
    pub shape: KvShape,
    /// Keys or values.
    pub side: KvSide,
    /// The heads, all or one.
    pub heads: Range<usize>,
    /// The positions. The first is a multiple of [`KV_BLOCK`].
    pub positions: Range<usize>,
}

impl KvPart {
    /// The number of positions. For keys, the last block counts as full.
    fn padded(&self) -> usize {
        match self.side {
            KvSide::Keys => self.positions.len().next_multiple_of(KV_BLOCK),
            KvSide::Values => self.positions.len(),
        }
    }

    /// Bytes of one head.
    pub fn head_bytes(&self) -> usize {
        self.padded() * self.shape.dim(self.side) * self.shape.number_bytes
    }

    /// Bytes of the whole part.
    pub fn bytes(&self) -> usize {
        self.heads.len() * self.head_bytes()
    }
}

impl KvShape {
    /// Bytes of a layer's keys and values for `positions` positions; `None` on overflow.
    pub fn bytes(&self, positions: usize) -> Option<usize> {
        let keys = positions.checked_next_multiple_of(KV_BLOCK)?.checked_mul(self.head_dim)?;
        let both = keys.checked_add(positions.checked_mul(self.v_dim)?)?;
        both.checked_mul(self.heads)?.checked_mul(self.number_bytes)
    }

    /// Values of one head's key or value.
    pub fn dim(&self, side: KvSide) -> usize {
        match side {
            KvSide::Keys => self.head_dim,
            KvSide::Values => self.v_dim,
        }
    }

    /// Splits a layer's `positions` into parts of at most `most` bytes, but at least one block of one head. No part wraps
    /// around the end of a cache with either number of places. The parts' concatenated bytes depend on none of these.
    pub fn parts(
        self,
        positions: Range<usize>,
        places: [usize; 2],
        most: usize,
    ) -> impl Iterator<Item = KvPart> {
        let Range { start, end } = positions;
        let position_bytes = (self.head_dim.max(self.v_dim) * self.number_bytes).max(1);
        let blocks = (most / position_bytes / KV_BLOCK).max(1);
        // Several heads only with all their positions, so that a part is one contiguous run of bytes.
        let all = (end - start).div_ceil(KV_BLOCK).max(1);
        let together = if places.iter().any(|&n| n < end) { 1 } else { (blocks / all).max(1) };
        let stop = move |at: usize| {
            let around = places.map(|n| (at / n.max(1) + 1) * n);
            (at + blocks * KV_BLOCK).min(around[0]).min(around[1]).min(end)
        };
        let part = move |side, head: usize, at: usize| KvPart {
            shape: self,
            side,
            heads: head..(head + together).min(self.heads),
            positions: at..stop(at),
        };
        let starts = move || {
            std::iter::successors(Some(start), move |&at| Some(stop(at))).take_while(move |&at| at < end)
        };
        [KvSide::Keys, KvSide::Values].into_iter().flat_map(move |side| {
            (0..self.heads)
                .step_by(together)
                .flat_map(move |head| starts().map(move |at| part(side, head, at)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_it_whatever_their_size() {
        let shape = KvShape { heads: 3, head_dim: 10, v_dim: 7, number_bytes: 2 };
        for (start, end, places) in
            [0, 1, 15, 16, 17, 100].map(|n| (0, n, 100)).into_iter().chain([(32, 150, 128), (320, 471, 192)])
        {
            for most in [1, 320, 700, 2000, 1 << 20] {
                let positions = start..end;
                let parts: Vec<KvPart> = shape.parts(positions.clone(), [places, 2 * places], most).collect();
                assert_eq!(Some(parts.iter().map(KvPart::bytes).sum()), shape.bytes(end - start));
                assert!(
                    parts.iter().all(|p| p.bytes() <= most.max(320) && p.positions.start % KV_BLOCK == 0)
                );
                // No part wraps around.
                assert!(parts.iter().all(|p| p.positions.start % places + p.positions.len() <= places));
                for side in [KvSide::Keys, KvSide::Values] {
                    // The parts are in order and cover every position of every head once.
                    let cells: Vec<(usize, usize)> = (parts.iter().filter(|p| p.side == side))
                        .flat_map(|p| {
                            p.heads.clone().flat_map(|h| p.positions.clone().map(move |at| (h, at)))
                        })
                        .collect();
                    let all = (0..3).flat_map(|h| (start..end).map(move |at| (h, at)));
                    assert!(cells.into_iter().eq(all), "{start}..{end} in parts of {most}");
                }
            }
        }
    }
}
