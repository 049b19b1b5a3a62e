//! A timeline's keys and values, wherever they lie, as bytes: what is saved, restored and copied to another timeline.

use super::super::dense::is_single;
use super::super::processor::{Processor, Timeline};
use super::super::processors::Computing;
use crate::error::{Error, Result};
use crate::kernels::{KvPart, KvShape};

/// Bytes that are copied at a time: memory beside what a plan counts, and less than one read of an expert.
const PART_BYTES: usize = 1 << 20;

/// What a layer holds for a position.
pub(super) fn shape(on: &Computing) -> KvShape {
    let number_bytes = if is_single(&on.model.weights) { 4 } else { 2 };
    // Layers are alike.
    let attention = &on.model.spec.layers[0].attention;
    KvShape { heads: attention.kv_heads, head_dim: attention.head_dim, number_bytes }
}

/// The parts of a layer's first `positions`.
pub(super) fn parts(on: &Computing, positions: usize) -> impl Iterator<Item = KvPart> + use<> {
    shape(on).parts(positions, PART_BYTES)
}

/// What a part is copied to and from.
pub(super) fn buffer(on: &Computing, positions: usize) -> Vec<u8> {
    vec![0; parts(on, positions).map(|part| part.bytes()).max().unwrap_or(0)]
}

/// Copies a part out.
///
/// # Errors
/// `Device` where it was on one that is lost.
pub(super) fn read(on: &Computing, of: &Timeline, layer: usize, part: &KvPart, out: &mut [u8]) -> Result<()> {
    match (&on.processor, of) {
        (Processor::Cpu(cpu), Timeline::Cpu(state)) => state.read_kv(&**cpu, layer, part, out),
        #[cfg(feature = "gpu")]
        (Processor::Gpu(gpu), Timeline::Gpu(state)) => state.read_kv(&**gpu, layer, part, out),
        _ => Err(Error::Device("it was lost, and this session's memory with it".into())),
    }
}

/// Copies a part in.
pub(super) fn write(
    on: &Computing,
    to: &mut Timeline,
    layer: usize,
    part: &KvPart,
    from: &[u8],
) -> Result<()> {
    match (&on.processor, to) {
        (Processor::Cpu(cpu), Timeline::Cpu(state)) => state.write_kv(&**cpu, layer, part, from),
        #[cfg(feature = "gpu")]
        (Processor::Gpu(gpu), Timeline::Gpu(state)) => state.write_kv(&**gpu, layer, part, from),
        _ => return Err(Error::Device("it was lost, and this session's memory with it".into())),
    }
    Ok(())
}
