//! What a layer keeps of the tokens before, and how far back that lets a timeline go.

use super::marks;
use super::spec::{LayerSpec, MixerSpec, Spec};
use crate::kernels::{KV_BLOCK, KV_TILE, KvShape};

/// Positions that a cache of a window holds beyond the window, at least: a timeline goes back by as many without reading again.
const BACK: usize = 512;

/// Slots of a recurrent state, at most.
pub use super::marks::SLOTS;

/// Copies of what a window sees, at most: where the last two turns begin and end.
pub const COPIES: usize = 4;

/// What a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpec {
    /// Keys and values.
    Kv(KvSpec),
    /// A recurrent state of so many values, which stands for one position: in slots (`marks`).
    State(usize),
}

/// Keys and values of a layer, of its own number and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Key/value heads; none where the layer reads another's.
    pub heads: usize,
    /// Values of a key.
    pub head_dim: usize,
    /// Values of a value.
    pub v_dim: usize,
    /// Positions that a token sees; all where there is no window.
    pub window: Option<usize>,
}

impl LayerSpec {
    /// What it keeps, of a residual stream of width `d`.
    pub fn memory(&self, d: usize) -> MemorySpec {
        match &self.mixer {
            MixerSpec::Attention(a) => {
                // What another layer keeps takes no memory twice.
                let heads = if a.kv_of.is_some() { 0 } else { a.kv_heads };
                MemorySpec::Kv(KvSpec { heads, head_dim: a.head_dim, v_dim: a.v_dim, window: a.window })
            }
            MixerSpec::Conv { taps } => MemorySpec::State((taps - 1) * d),
            MixerSpec::Delta(delta) => MemorySpec::State(delta.state_values()),
        }
    }
}

impl Spec {
    /// Slots of its layers' states.
    pub fn slots(&self) -> usize {
        let values = |layer: &LayerSpec| match layer.memory(self.d) {
            MemorySpec::State(values) => values,
            MemorySpec::Kv(_) => 0,
        };
        marks::slots(self.layers.iter().map(values).fold(0, usize::saturating_add))
    }
}

impl KvSpec {
    /// Places of a cache for `context` positions that are taken in chunks of up to `chunk`: all of them, or the window, a chunk and
    /// some to go back by, and no more than begin and end in tiles of their own. All where the window with its copies takes as much.
    pub fn places(&self, context: usize, chunk: usize) -> usize {
        let Some(window) = self.window else { return context };
        let seen = window.saturating_add(chunk.max(BACK)).saturating_add(KV_TILE);
        let bounded = seen.checked_next_multiple_of(KV_TILE).unwrap_or(context);
        if bounded.saturating_add(Self::copied_places(window)) < context { bounded } else { context }
    }

    /// Positions in all copies of what a window sees.
    fn copied_places(window: usize) -> usize {
        window.saturating_add(KV_BLOCK).saturating_mul(COPIES)
    }

    /// The first position that a token at `pos` needs, or one before it where a block begins.
    pub fn first(&self, pos: usize) -> usize {
        let first = self.window.map_or(0, |window| pos.saturating_add(1).saturating_sub(window));
        first / KV_BLOCK * KV_BLOCK
    }

    /// What it is for one position.
    pub fn shape(&self, number_bytes: usize) -> KvShape {
        let KvSpec { heads, head_dim, v_dim, .. } = *self;
        KvShape { heads, head_dim, v_dim, number_bytes }
    }

    /// Bytes of all copies of what a window sees.
    pub fn copied_bytes(&self, number_bytes: usize) -> usize {
        self.shape(number_bytes).bytes(self.window.map_or(0, Self::copied_places)).unwrap_or(usize::MAX)
    }

    /// The earliest position that can follow, once the first `written` positions have passed through `places`.
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

    /// What a position needs is there as long as `earliest` says so, and a chunk never writes over what its own tokens see.
    #[test]
    fn what_is_needed_is_there() {
        for (window, chunk) in [(1, 1), (7, 32), (128, 512), (130, 700), (1000, 64)] {
            let of = spec(Some(window));
            let places = of.places(1 << 20, chunk);
            for written in (0..4 * places).step_by(13) {
                let earliest = of.earliest(places, written);
                assert!(earliest <= written, "the next token can always follow");
                // What lies before has been written over.
                let gone = written.saturating_sub(places);
                assert!(earliest == 0 && gone == 0 || of.first(earliest) >= gone, "{window} {written}");
                assert!(earliest == 0 || written - earliest >= BACK, "{window} {written}");
                let (first, last) = (written.saturating_sub(window - 1), written + chunk - 1);
                assert!(last / KV_TILE - first / KV_TILE < places / KV_TILE);
            }
        }
    }
}
