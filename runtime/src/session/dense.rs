//! The always-used weights: their size in memory, and their copy in RAM if experts are streamed.

use super::processor;
use crate::bytes::Bytes;
use crate::error::Result;
use crate::model::Weights;
use crate::model::file::{DenseCheck, DenseSums};
use crate::quant::{self, Matrix, Nested};
use crate::store::{self, Arena, End};
use std::sync::Arc;

/// Alignment of matrices in memory, in bytes: a cache line.
const LINE: usize = 64;

/// Bytes of an embedding that are checksummed at once, before their pages are released.
const CHECKED_BYTES: usize = 4 << 20;

/// The most bytes that this alignment costs per matrix.
pub(super) const PADDING: usize = LINE * quant::PLANES;

/// Bytes of the always-used weights in memory. A device copies all of them. Mapped weights then exist only
/// there. f32 weights (routers, norms, biases) exist on both sides.
pub(super) fn dense_bytes(weights: &Weights, gpu: bool) -> u64 {
    let mut matrices: Vec<&Matrix> = weights.matrices().into_iter().flatten().collect();
    if is_tied(weights) {
        matrices.pop();
    }
    let matrix = |m: &Matrix| match (gpu, m) {
        (false, m) => m.bytes(),
        (true, Matrix::Nested(_)) => processor::matrix_bytes(m),
        (true, Matrix::F32 { .. }) => m.bytes() + processor::matrix_bytes(m),
    };
    let matrices: usize = matrices.into_iter().map(|m| matrix(m) + PADDING).sum();
    let vectors: usize = weights.vectors().into_iter().map(|v| 4 * v.len() + LINE).sum();
    (matrices + if gpu { 2 * vectors } else { vectors }) as u64
}

/// Copies the always-used weights from the mapping into RAM, and compares them with the checksums in `sums`.
/// Reads of experts would evict pages of a mapping, and these would then fault in again one by one.
pub(super) fn copy_dense(weights: &mut Weights, tied: bool, sums: &DenseSums) -> Result<()> {
    let nested = |m: &&mut Matrix| match m {
        Matrix::Nested(n) => {
            (0..n.level().planes()).map(|p| n.shape().plane(p).len.next_multiple_of(LINE)).sum()
        }
        Matrix::F32 { .. } => 0,
    };
    let bytes: usize = weights.matrices_mut(tied).iter().map(nested).sum();
    let arena = Arena::new(bytes, LINE)?;
    for matrix in weights.matrices_mut(tied) {
        let Matrix::Nested(n) = matrix else { continue };
        let mut check = DenseCheck::default();
        let copy = n.try_map(|plane| {
            let mut slab = arena.alloc(plane.len(), End::Low).expect("the arena was made for these planes");
            slab.copy_from_slice(plane);
            check.add(plane.as_ptr().addr(), &slab);
            store::release(plane);
            Ok(Bytes::new(Arc::new(slab)))
        })?;
        check.finish(sums)?;
        *n = copy;
    }
    if tied && let Some(embed) = weights.embed.held() {
        weights.head = embed.clone();
    }
    Ok(())
}

/// Compares the embedding with its checksum in `sums`, if it has one. Rows that are read later have no
/// checksums of their own.
///
/// # Errors
/// `Malformed`.
pub(super) fn check_embedding(embed: &Nested, sums: &DenseSums) -> Result<()> {
    if sums.is_empty() {
        return Ok(());
    }
    let mut check = DenseCheck::default();
    for piece in embed.planes().iter().flat_map(|plane| plane.chunks(CHECKED_BYTES)) {
        check.add(piece.as_ptr().addr(), piece);
        store::release(piece);
    }
    check.finish(sums)
}

/// Whether the output head is tied: it shares the embedding's bytes in memory.
pub(super) fn is_tied(weights: &Weights) -> bool {
    let Some(embed) = weights.embed.held() else { return false };
    match (embed, &weights.head) {
        (Matrix::F32 { data: a, .. }, Matrix::F32 { data: b, .. }) => Arc::ptr_eq(a, b),
        (Matrix::Nested(a), Matrix::Nested(b)) => std::ptr::eq(a.codes(0), b.codes(0)),
        _ => false,
    }
}
