//! What a timeline's layers keep, wherever it lies, as bytes: what is saved, restored and copied to another timeline.

use super::super::dense::is_single;
use super::super::failover::Computing;
use super::super::processor::Timeline;
use super::flow::SUM;
use crate::kernels::{KvPart, KvShape};
use crate::model::Spec;
use crate::model::memory::MemorySpec;
use std::ops::Range;

/// Bytes that are copied at a time: memory beside what a plan counts, and less than one read of an expert.
const PART_BYTES: usize = 1 << 20;

/// What of a timeline there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Positions.
    pub(super) held: usize,
    /// The earliest that tokens can follow: a layer with a window has what one there sees, and what comes later.
    pub(super) earliest: usize,
}

/// Bytes of a number that is kept.
pub(super) fn number_bytes(on: &Computing) -> usize {
    if is_single(&on.model.weights) { 4 } else { 2 }
}

/// What a layer has for each of its positions, and which these are.
fn layer(spec: &Spec, number_bytes: usize, layer: usize, extent: Extent) -> (KvShape, Range<usize>) {
    let MemorySpec::Kv(kv) = spec.layers[layer].memory();
    let first = if extent.earliest == 0 { 0 } else { kv.first(extent.earliest) };
    (KvShape { heads: kv.heads, head_dim: kv.head_dim, number_bytes }, first..extent.held)
}

/// Bytes of all layers with their checksums; `None` where there is no such number.
pub(super) fn bytes(spec: &Spec, number_bytes: usize, extent: Extent) -> Option<usize> {
    (0..spec.layers.len()).try_fold(0usize, |sum, i| {
        let (shape, positions) = layer(spec, number_bytes, i, extent);
        sum.checked_add(shape.bytes(positions.len())?)?.checked_add(SUM)
    })
}

/// The parts of a layer, none of which goes around the end of `a` or `b`.
pub(super) fn parts(
    on: &Computing,
    (a, b): (&dyn Timeline, &dyn Timeline),
    i: usize,
    extent: Extent,
) -> impl Iterator<Item = KvPart> + use<> {
    let (shape, positions) = layer(&on.model.spec, number_bytes(on), i, extent);
    let places = [a.places(i), b.places(i)];
    shape.parts(positions, places, PART_BYTES)
}

/// What a part is copied to and from.
pub(super) fn buffer(on: &Computing, both: (&dyn Timeline, &dyn Timeline), extent: Extent) -> Vec<u8> {
    let all = (0..on.model.spec.layers.len()).flat_map(|i| parts(on, both, i, extent));
    vec![0; all.map(|part| part.bytes()).max().unwrap_or(0)]
}
