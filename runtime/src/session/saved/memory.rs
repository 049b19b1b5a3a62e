//! What a timeline's layers keep, wherever it lies, as bytes: what is saved, restored and copied to another timeline.

use super::super::failover::Computing;
use super::super::processor::Timeline;
use super::flow::SUM;
use crate::error::Result;
use crate::kernels::{KvPart, KvShape};
use crate::model::Spec;
use crate::model::memory::{KvSpec, MemorySpec, SLOTS};
use std::ops::Range;

/// Bytes that are copied at a time: memory beside what a plan counts, and less than one read of an expert.
const PART_BYTES: usize = 1 << 20;

/// Marks at most.
pub(super) const MAX_MARKS: usize = SLOTS;

/// What of a timeline there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Positions.
    pub(super) held: usize,
    /// The earliest that tokens can follow: a layer with a window has what one there sees, and what comes later.
    pub(super) earliest: usize,
    /// Positions that a layer with a state has one for.
    pub(super) marks: usize,
}

/// A piece of what a layer keeps.
pub(super) enum Piece {
    /// Of its keys and values.
    Kv(KvPart),
    /// Of its state: which of its marks, and how many values.
    State { mark: usize, values: usize },
}

impl Piece {
    /// Its bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Piece::Kv(part) => part.bytes(),
            Piece::State { values, .. } => 4 * values,
        }
    }
}

/// What a layer has for each of its positions, and which these are.
fn kv_of(kv: KvSpec, number_bytes: usize, extent: Extent) -> (KvShape, Range<usize>) {
    let first = if extent.earliest == 0 { 0 } else { kv.first(extent.earliest) };
    (kv.shape(number_bytes), first..extent.held)
}

/// Bytes of all layers with their checksums; `None` where there is no such number.
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

/// The pieces of a layer, none of which goes around the end of `a` or `b`.
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

/// What a piece is copied to and from.
pub(super) fn buffer(on: &Computing, both: (&dyn Timeline, &dyn Timeline), extent: Extent) -> Vec<u8> {
    let all = (0..on.model.spec.layers.len()).flat_map(|i| pieces(on, both, i, extent));
    vec![0; all.map(|piece| piece.bytes()).max().unwrap_or(0)]
}

/// A layer's memory where it lies, and the position that the timeline is at.
pub(super) struct Layer {
    pub(super) layer: usize,
    pub(super) held: usize,
}

impl Layer {
    /// Copies a piece out of a timeline.
    ///
    /// # Errors
    /// `Device` where it was on one that is lost.
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
