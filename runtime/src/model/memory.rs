//! What each layer remembers of earlier tokens (KV cache or recurrent state), and how far a timeline can
//! rewind.

use super::marks;
use super::spec::{LayerSpec, MixerSpec, Spec};
use crate::kernels::{KV_BLOCK, KV_TILE, KvShape};

/// Positions that a window's KV cache holds beyond the window, at least. A timeline can rewind by this many
/// without recomputing.
const BACK: usize = 512;

/// The most slots of a recurrent state.
pub use super::marks::SLOTS;

/// The most copies of a window's keys and values: the beginnings and ends of the last two turns.
pub const COPIES: usize = 4;

/// The memory of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpec {
    /// A KV cache.
    Kv(KvSpec),
    /// A recurrent state of this many values. It belongs to one position; several are held in slots (see
    /// `marks`).
    State(usize),
}

/// Dimensions of a layer's KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Key/value heads; 0 if the layer has no cache, or reads another layer's.
    pub heads: usize,
    /// Dimension of a key.
    pub head_dim: usize,
    /// Dimension of a value.
    pub v_dim: usize,
    /// Sliding window in positions; `None` for full attention.
    pub window: Option<usize>,
}

impl LayerSpec {
    /// The memory of this layer in a model of width `d`.
    pub fn memory(&self, d: usize) -> MemorySpec {
        match &self.mixer {
            MixerSpec::Attention(a) => {
                // A layer that reads another's cache allocates none.
                let heads = if a.kv_of.is_some() { 0 } else { a.kv_heads };
                MemorySpec::Kv(KvSpec { heads, head_dim: a.head_dim, v_dim: a.v_dim, window: a.window })
            }
            MixerSpec::Conv { taps } => MemorySpec::State((taps - 1) * d),
            MixerSpec::Delta(delta) => MemorySpec::State(delta.state_values()),
            MixerSpec::Nothing => MemorySpec::Kv(KvSpec { heads: 0, head_dim: 1, v_dim: 1, window: None }),
        }
    }
}

impl Spec {
    /// Slots for the recurrent states of all layers.
    pub fn slots(&self) -> usize {
        let values = |layer: &LayerSpec| match layer.memory(self.d) {
            MemorySpec::State(values) => values,
            MemorySpec::Kv(_) => 0,
        };
        marks::slots(self.layers.iter().map(values).fold(0, usize::saturating_add))
    }
}

impl KvSpec {
    /// Positions that the cache holds, for a context of `context` positions in chunks of up to `chunk`
    /// tokens. Without a window it holds the context. With a window it holds the window, a chunk, and room to
    /// rewind, rounded up to tiles. If that and the window's copies need as much as the context, it holds the
    /// context.
    pub fn places(&self, context: usize, chunk: usize) -> usize {
        let Some(window) = self.window else { return context };
        let seen = window.saturating_add(chunk.max(BACK)).saturating_add(KV_TILE);
        let bounded = seen.checked_next_multiple_of(KV_TILE).unwrap_or(context);
        if bounded.saturating_add(Self::copied_places(window)) < context { bounded } else { context }
    }

    /// Positions in all copies of the window.
    fn copied_places(window: usize) -> usize {
        window.saturating_add(KV_BLOCK).saturating_mul(COPIES)
    }

    /// The first position that a token at `pos` sees, rounded down to the start of a block.
    pub fn first(&self, pos: usize) -> usize {
        let first = self.window.map_or(0, |window| pos.saturating_add(1).saturating_sub(window));
        first / KV_BLOCK * KV_BLOCK
    }

    /// The shape of the cache, with numbers of `number_bytes` bytes.
    pub fn shape(&self, number_bytes: usize) -> KvShape {
        let KvSpec { heads, head_dim, v_dim, .. } = *self;
        KvShape { heads, head_dim, v_dim, number_bytes }
    }

    /// Bytes of all copies of the window.
    pub fn copied_bytes(&self, number_bytes: usize) -> usize {
        // Each copy is in whole blocks of its own.
        let one = self.shape(number_bytes).bytes(self.window.map_or(0, |w| w.saturating_add(KV_BLOCK)));
        one.map_or(usize::MAX, |bytes| COPIES.saturating_mul(bytes))
    }

    /// The earliest position from which a timeline can continue, after `written` positions went through a
    /// cache of `places` positions.
    pub fn earliest(&self, places: usize, written: usize) -> usize {
        match self.window {
            Some(window) if written > places => (written - places) + window + KV_BLOCK,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(window: Option<usize>) -> KvSpec {
        KvSpec { heads: 2, head_dim: 8, v_dim: 8, window }
    }

    #[test]
    fn a_window_bounds_what_a_layer_holds() {
        assert_eq!(spec(None).places(100_000, 32), 100_000);
        assert_eq!(spec(Some(128)).places(100_000, 32), 128 + BACK + KV_TILE);
        assert_eq!(spec(Some(100)).places(100_000, 1024), 1216);
        assert_eq!(spec(Some(128)).places(300, 32), 300, "no more than there are positions");
        assert_eq!(spec(Some(usize::MAX)).places(300, 32), 300);
        assert_eq!(
            spec(Some(1024)).places(4096, 32),
            4096,
            "a window with its copies takes more than the context"
        );
        assert_eq!(spec(Some(1024)).places(32768, 32), 1024 + BACK + KV_TILE);
    }

    /// The cache still holds what a token at `earliest` needs, and a chunk never overwrites what its own
    /// tokens see.
    #[test]
    fn what_is_needed_is_there() {
        for (window, chunk) in [(1, 1), (7, 32), (128, 512), (130, 700), (1000, 64)] {
            let of = spec(Some(window));
            let places = of.places(1 << 20, chunk);
            for written in (0..4 * places).step_by(13) {
                let earliest = of.earliest(places, written);
                assert!(earliest <= written, "the next token can always follow");
                // Earlier positions were overwritten.
                let gone = written.saturating_sub(places);
                assert!(earliest == 0 && gone == 0 || of.first(earliest) >= gone, "{window} {written}");
                assert!(earliest == 0 || written - earliest >= BACK, "{window} {written}");
                let (first, last) = (written.saturating_sub(window - 1), written + chunk - 1);
                assert!(last / KV_TILE - first / KV_TILE < places / KV_TILE);
            }
        }
    }
}
