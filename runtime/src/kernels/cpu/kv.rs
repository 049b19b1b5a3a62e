//! The KV cache of a layer: keys transposed in blocks of 16 positions, values position after position (see
//! `attention`).

use super::aligned::{Aligned, grow};
use crate::error::Result;
use crate::kernels::{KV_BLOCK, KV_TILE, KvPart, KvSide};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;

/// Positions per block of keys: one vector of scores.
pub(super) const BLOCK: usize = 16;

/// Positions per tile.
pub(super) const TILE: usize = 64;

/// A layer's keys and values, in a fixed number of places.
pub struct CpuKv {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) v_dim: usize,
    /// Places, a multiple of [`TILE`]: position `p` has place `p % capacity`.
    pub(super) capacity: usize,
    pub(super) store: Store,
}

/// `[heads, capacity / 16, head_dim, 16]` keys and `[heads, capacity, v_dim]` values.
pub(super) enum Store {
    Half { k: Aligned<f16>, v: Aligned<f16> },
    Single { k: Aligned<f32>, v: Aligned<f32> },
}

impl CpuKv {
    /// `[head_dim, v_dim]` are the numbers of values in a key and in a value.
    pub(super) fn new(
        capacity: usize,
        heads: usize,
        [head_dim, v_dim]: [usize; 2],
        single: bool,
    ) -> Result<CpuKv> {
        let capacity = capacity.next_multiple_of(TILE);
        let [keys, values] = [head_dim, v_dim].map(|dim| capacity * heads * dim);
        let store = if single {
            Store::Single { k: Aligned::zeroed(keys)?, v: Aligned::zeroed(values)? }
        } else {
            Store::Half { k: Aligned::zeroed(keys)?, v: Aligned::zeroed(values)? }
        };
        Ok(CpuKv { heads, head_dim, v_dim, capacity, store })
    }

    /// Bytes of a cache made by [`CpuKv::new`].
    pub(super) fn bytes(capacity: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
        let side = |dim| {
            let len = capacity.next_multiple_of(TILE) * heads * dim;
            if single { Aligned::<f32>::bytes(len) } else { Aligned::<f16>::bytes(len) }
        };
        dims.map(side).iter().sum()
    }

    /// Writes `tokens` rows from `pos` on. If the cache's values are shorter than `v`'s heads, it gets their ends.
    pub(super) fn write(&mut self, pos: usize, tokens: usize, k: &[f32], v: &[f32]) {
        let (heads, dim, v_dim, capacity) = (self.heads, self.head_dim, self.v_dim, self.capacity);
        let width = heads * dim;
        for t in 0..tokens {
            let (k, v, pos) = (&k[t * width..][..width], &v[t * width..][..width], (pos + t) % capacity);
            match &mut self.store {
                Store::Half { k: ks, v: vs } => HALVES.with_borrow_mut(|halves| {
                    grow(halves, width);
                    halves.convert_from_f32_slice(k);
                    place(halves, heads, dim, capacity, pos, ks);
                    for (h, v) in v.chunks_exact(dim).enumerate() {
                        let to = &mut vs[(h * capacity + pos) * v_dim..][..v_dim];
                        to.convert_from_f32_slice(&v[dim - v_dim..]);
                    }
                }),
                Store::Single { k: ks, v: vs } => {
                    place(k, heads, dim, capacity, pos, ks);
                    for (h, v) in v.chunks_exact(dim).enumerate() {
                        let to = &mut vs[(h * capacity + pos) * v_dim..][..v_dim];
                        to.copy_from_slice(&v[dim - v_dim..]);
                    }
                }
            }
        }
    }
}

const _: () = assert!(BLOCK == KV_BLOCK && TILE == KV_TILE && cfg!(target_endian = "little"));

impl CpuKv {
    /// Copies a part out as it is stored, but with zeros in the unused lanes of the last block.
    pub(super) fn read(&self, part: &KvPart, out: &mut [u8]) {
        let len = part.head_bytes();
        for (head, out) in part.heads.clone().zip(out.chunks_exact_mut(len.max(1))) {
            out.copy_from_slice(&self.side(part.side)[self.at(part, head)..][..len]);
            let number = part.shape.number_bytes;
            let beyond = part.positions.len() % BLOCK;
            if part.side == KvSide::Keys && beyond > 0 {
                let last = out.len() - BLOCK * self.head_dim * number;
                for lane in out[last..].chunks_exact_mut(BLOCK * number) {
                    lane[beyond * number..].fill(0);
                }
            }
        }
    }

    /// Copies a part in.
    pub(super) fn restore(&mut self, part: &KvPart, from: &[u8]) {
        let len = part.head_bytes();
        for (head, from) in part.heads.clone().zip(from.chunks_exact(len.max(1))) {
            let at = self.at(part, head);
            let side = match (&mut self.store, part.side) {
                (Store::Half { k: side, .. }, KvSide::Keys)
                | (Store::Half { v: side, .. }, KvSide::Values) => bytemuck::cast_slice_mut(side),
                (Store::Single { k: side, .. }, KvSide::Keys)
                | (Store::Single { v: side, .. }, KvSide::Values) => bytemuck::cast_slice_mut(side),
            };
            let side: &mut [u8] = side;
            side[at..][..len].copy_from_slice(from);
        }
    }

    /// Offset of a head's part, in bytes.
    fn at(&self, part: &KvPart, head: usize) -> usize {
        let shape = part.shape;
        let number = if matches!(self.store, Store::Half { .. }) { 2 } else { 4 };
        let is = (self.heads, self.head_dim, self.v_dim, number);
        let of = (shape.heads, shape.head_dim, shape.v_dim, shape.number_bytes);
        assert_eq!(of, is, "a part of another cache");
        let at = part.positions.start % self.capacity.max(1);
        assert!(at.is_multiple_of(BLOCK) && at + part.positions.len() <= self.capacity, "it goes around");
        (head * self.capacity + at) * shape.dim(part.side) * number
    }

    fn side(&self, side: KvSide) -> &[u8] {
        match (&self.store, side) {
            (Store::Half { k: side, .. }, KvSide::Keys) | (Store::Half { v: side, .. }, KvSide::Values) => {
                bytemuck::cast_slice(side)
            }
            (Store::Single { k: side, .. }, KvSide::Keys)
            | (Store::Single { v: side, .. }, KvSide::Values) => bytemuck::cast_slice(side),
        }
    }
}

/// Writes one position's keys.
fn place<T: Copy>(keys: &[T], heads: usize, dim: usize, capacity: usize, pos: usize, to: &mut [T]) {
    for (h, keys) in keys.chunks_exact(dim).enumerate().take(heads) {
        let block = &mut to[h * capacity * dim + pos / BLOCK * BLOCK * dim..][..BLOCK * dim];
        for (to, &key) in block.iter_mut().skip(pos % BLOCK).step_by(BLOCK).zip(keys) {
            *to = key;
        }
    }
}

thread_local! {
    /// One position's keys in half precision.
    static HALVES: RefCell<Vec<f16>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that this thread keeps allocated.
#[cfg(test)]
pub(super) fn held_by_thread() -> usize {
    HALVES.with_borrow(|h| 2 * h.capacity())
}
