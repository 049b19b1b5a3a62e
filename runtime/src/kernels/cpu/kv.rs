//! The KV cache of a layer: keys transposed in blocks of 16 positions, values position after position (`attention` says why).

use super::aligned::Aligned;
use super::attention::{BLOCK, TILE};
use super::scratch::grow;
use crate::error::Result;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;

/// Keys and values of a layer, for a fixed number of positions.
pub struct CpuKv {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// Positions, whole tiles.
    pub(super) capacity: usize,
    pub(super) store: Store,
}

/// `[heads, capacity / 16, head_dim, 16]` keys and `[heads, capacity, head_dim]` values.
pub(super) enum Store {
    Half { k: Aligned<f16>, v: Aligned<f16> },
    Single { k: Aligned<f32>, v: Aligned<f32> },
}

impl CpuKv {
    pub(super) fn new(capacity: usize, heads: usize, head_dim: usize, single: bool) -> Result<CpuKv> {
        let capacity = capacity.next_multiple_of(TILE);
        let len = capacity * heads * head_dim;
        let store = if single {
            Store::Single { k: Aligned::zeroed(len)?, v: Aligned::zeroed(len)? }
        } else {
            Store::Half { k: Aligned::zeroed(len)?, v: Aligned::zeroed(len)? }
        };
        Ok(CpuKv { heads, head_dim, capacity, store })
    }

    /// Bytes of a cache made by [`CpuKv::new`].
    pub(super) fn bytes(capacity: usize, heads: usize, head_dim: usize, single: bool) -> usize {
        let len = capacity.next_multiple_of(TILE) * heads * head_dim;
        2 * if single { Aligned::<f32>::bytes(len) } else { Aligned::<f16>::bytes(len) }
    }

    /// Writes `tokens` rows from `pos` on.
    pub(super) fn write(&mut self, pos: usize, tokens: usize, k: &[f32], v: &[f32]) {
        let (heads, dim, capacity) = (self.heads, self.head_dim, self.capacity);
        let width = heads * dim;
        for t in 0..tokens {
            let (k, v, pos) = (&k[t * width..][..width], &v[t * width..][..width], pos + t);
            match &mut self.store {
                Store::Half { k: ks, v: vs } => HALVES.with_borrow_mut(|halves| {
                    grow(halves, width);
                    halves.convert_from_f32_slice(k);
                    place(halves, heads, dim, capacity, pos, ks);
                    for (h, v) in v.chunks_exact(dim).enumerate() {
                        vs[(h * capacity + pos) * dim..][..dim].convert_from_f32_slice(v);
                    }
                }),
                Store::Single { k: ks, v: vs } => {
                    place(k, heads, dim, capacity, pos, ks);
                    for (h, v) in v.chunks_exact(dim).enumerate() {
                        vs[(h * capacity + pos) * dim..][..dim].copy_from_slice(v);
                    }
                }
            }
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

/// What this thread has for itself.
#[cfg(test)]
pub(super) fn held_by_thread() -> usize {
    HALVES.with_borrow(|h| 2 * h.capacity())
}
