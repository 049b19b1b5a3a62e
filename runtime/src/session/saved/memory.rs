//! Copies what a timeline's layers keep as bytes, on any processor: to save it, to restore it, and to fork
//! it.

use super::super::failover::Computing;
use super::super::processor::Timeline;
use super::flow::SUM;
use crate::error::Result;
use crate::kernels::{KvPart, KvShape};
use crate::model::Spec;
use crate::model::memory::{KvSpec, MemorySpec, SLOTS};
use std::ops::Range;

/// Bytes that are copied at once. This memory is not in the plan, but it is less than one read of an expert.
const PART_BYTES: usize = 1 << 20;

/// The most marks.
pub(super) const MAX_MARKS: usize = SLOTS;

/// The part of a timeline that its layers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Positions held.
    pub(super) held: usize,
    /// The earliest position from which tokens can continue. A window layer holds what a token there sees,
    /// and everything later.
    pub(super) earliest: usize,
    /// Positions for which a recurrent layer has a state.
    pub(super) marks: usize,
}

/// A piece of a layer's memory.
pub(super) enum Piece {
    /// Part of the keys and values.
    Kv(KvPart),
    /// A recurrent state: the index of its mark, and its number of values.
    State { mark: usize, values: usize },
}

impl Piece {
    /// The piece's size in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Piece::Kv(part) => part.bytes(),
            Piece::State { values, .. } => 4 * values,
        }
    }
}

/// The shape of a layer's keys and values, and the positions that it holds.
fn kv_of(kv: KvSpec, number_bytes: usize, extent: Extent) -> (KvShape, Range<usize>) {
    let first = if extent.earliest == 0 { 0 } else { kv.first(extent.earliest) };
    (kv.shape(number_bytes), first..extent.held)
}

/// Bytes of all layers with their checksums; `None` if they overflow.
pub(super) fn bytes(spec: &Spec, number_bytes: usize, extent: Extent) -> Option<usize> {
    spec.layers.iter().try_fold(0usize, |sum, layer| {
        let bytes = match layer.memory(spec.d) {
            MemorySpec::Kv(kv) => {
                let (shape, positions) = kv_of(kv, number_bytes, extent);
                shape.bytes(positions.len())?
            }
            MemorySpec::State(values) => extent.marks.checked_mul(values)?.checked_mul(4)?,
        };
        sum.checked_add(bytes)?.checked_add(SUM)
    })
}

/// The pieces of a layer. None wraps around the end of a ring buffer in `a` or `b`.
pub(super) fn pieces(
    on: &Computing,
    (a, b): (&dyn Timeline, &dyn Timeline),
    i: usize,
    extent: Extent,
) -> Box<dyn Iterator<Item = Piece>> {
    let spec = &on.model.spec;
    match spec.layers[i].memory(spec.d) {
        MemorySpec::Kv(kv) => {
            let (shape, positions) = kv_of(kv, on.model.weights.number_bytes(), extent);
            Box::new(shape.parts(positions, [a.places(i), b.places(i)], PART_BYTES).map(Piece::Kv))
        }
        MemorySpec::State(values) => {
            Box::new((0..extent.marks).map(move |mark| Piece::State { mark, values }))
        }
    }
}

/// Allocates a buffer that holds any piece.
pub(super) fn buffer(on: &Computing, both: (&dyn Timeline, &dyn Timeline), extent: Extent) -> Vec<u8> {
    let all = (0..on.model.spec.layers.len()).flat_map(|i| pieces(on, both, i, extent));
    vec![0; all.map(|piece| piece.bytes()).max().unwrap_or(0)]
}

/// A layer's index, and the position of its timeline.
pub(super) struct Layer {
    pub(super) layer: usize,
    pub(super) held: usize,
}

impl Layer {
    /// Copies a piece out of a timeline.
    ///
    /// # Errors
    /// `Device` if it was on a device that was lost.
    pub(super) fn read(&self, of: &dyn Timeline, piece: &Piece, out: &mut [u8]) -> Result<()> {
        match piece {
            Piece::Kv(part) => of.read_kv(self.layer, part, out),
            Piece::State { mark, values } => {
                let mut state = vec![0.0f32; *values];
                of.read_state(self.layer, (*mark, self.held), &mut state)?;
                out.copy_from_slice(bytemuck::cast_slice(&state));
                Ok(())
            }
        }
    }

    /// Copies a piece into a timeline.
    ///
    /// # Errors
    /// As [`Layer::read`].
    pub(super) fn write(&self, to: &mut dyn Timeline, piece: &Piece, from: &[u8]) -> Result<()> {
        match piece {
            Piece::Kv(part) => to.write_kv(self.layer, part, from),
            Piece::State { mark, .. } => {
                let state: Vec<f32> = bytemuck::pod_collect_to_vec(from);
                to.write_state(self.layer, *mark, &state)
            }
        }
    }
}
