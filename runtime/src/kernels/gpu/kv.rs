//! Activations and the KV cache on the device.

use super::device::{Device, Memory};
use super::recorder::Recorder;
use crate::error::Result;
use crate::kernels::{KV_BLOCK, KvPart, KvSide};
use std::ops::Range;

/// Values of a head per cell.
const CELL: usize = 4;

/// A buffer of f32 values on the device.
pub struct GpuBuf {
    pub(super) memory: Memory,
    pub(super) len: usize,
}

/// Keys and values of a layer, four dimensions per cell: keys `[heads, head_dim / 4, capacity]`, so that neighbouring
/// positions are adjacent, and values `[heads, capacity, v_dim / 4]`. Position `p` has place `p % capacity`.
pub struct GpuKv {
    pub(super) keys: Memory,
    pub(super) values: Memory,
    pub(super) capacity: usize,
    pub(super) v_dim: usize,
    pub(super) half: bool,
}

impl GpuKv {
    pub(super) fn new(
        gpu: &Device,
        capacity: usize,
        heads: usize,
        dims: [usize; 2],
        single: bool,
    ) -> Result<GpuKv> {
        let [keys, values] = Self::sides(capacity, heads, dims, single).map(|bytes| bytes as u64);
        let (keys, values) = (gpu.memory(keys, "a layer's keys")?, gpu.memory(values, "a layer's values")?);
        Ok(GpuKv { keys, values, capacity, v_dim: dims[1], half: !single })
    }

    /// Bytes of a cache made by [`Backend::alloc_kv`](crate::kernels::Backend::alloc_kv).
    pub fn bytes(capacity: usize, heads: usize, dims: [usize; 2], single: bool) -> usize {
        Self::sides(capacity, heads, dims, single).iter().sum()
    }

    fn sides(capacity: usize, heads: usize, dims: [usize; 2], single: bool) -> [usize; 2] {
        let cell = if single { 16 } else { 8 };
        dims.map(|dim| heads * dim.div_ceil(CELL) * capacity * cell)
    }
}

/// A run of bytes in a device's memory, and the cells of a [`KvPart`] that it contains.
struct Run {
    /// First byte.
    at: u64,
    bytes: usize,
    head: usize,
    /// For keys, whose positions are adjacent. Values have all cells of a position together.
    quad: usize,
}

impl GpuKv {
    /// The runs of a part.
    fn runs(&self, part: &KvPart) -> Vec<Run> {
        let shape = part.shape;
        assert_eq!(shape.number_bytes, if self.half { 2 } else { 4 }, "a part of another cache");
        let (from, n) = (part.positions.start % self.capacity.max(1), part.positions.len());
        assert!(from.is_multiple_of(KV_BLOCK) && from + n <= self.capacity, "it goes around");
        let quads = shape.dim(part.side).div_ceil(CELL);
        let cell = CELL * shape.number_bytes;
        let run = |head: usize, quad: usize| match part.side {
            KvSide::Keys => Run {
                at: (((head * quads + quad) * self.capacity + from) * cell) as u64,
                bytes: n * cell,
                head,
                quad,
            },
            KvSide::Values => {
                let at = ((head * self.capacity + from) * quads * cell) as u64;
                Run { at, bytes: n * quads * cell, head, quad }
            }
        };
        let each = if part.side == KvSide::Keys { quads } else { 1 };
        part.heads
            .clone()
            .flat_map(|head| (0..each).map(move |quad| (head, quad)))
            .map(|(h, q)| run(h, q))
            .collect()
    }

    /// Copies a part out in the order of [`KvPart`], with one wait for all runs.
    pub(super) fn read(
        &self,
        gpu: &Device,
        recorder: &mut Recorder,
        part: &KvPart,
        out: &mut [u8],
    ) -> Result<()> {
        let runs = self.runs(part);
        let mut read = vec![0; runs.iter().map(|run| run.bytes).sum()];
        let mut rest = &mut read[..];
        let mut parts = Vec::with_capacity(runs.len());
        for run in &runs {
            let (now, later) = rest.split_at_mut(run.bytes);
            parts.push((self.side(part.side), run.at, now));
            rest = later;
        }
        recorder.read(gpu, &mut parts)?;
        out.fill(0);
        let mut at = 0;
        for run in &runs {
            each_number(part, run, |there, here| out[there].copy_from_slice(&read[at..][here]));
            at += run.bytes;
        }
        Ok(())
    }

    /// Copies a part in.
    pub(super) fn restore(&mut self, gpu: &Device, recorder: &mut Recorder, part: &KvPart, from: &[u8]) {
        let mut bytes = Vec::new();
        for run in self.runs(part) {
            bytes.clear();
            bytes.resize(run.bytes, 0);
            each_number(part, &run, |there, here| bytes[here].copy_from_slice(&from[there]));
            recorder.write(gpu, self.side(part.side), run.at, &bytes);
        }
    }

    fn side(&self, side: KvSide) -> &Memory {
        match side {
            KvSide::Keys => &self.keys,
            KvSide::Values => &self.values,
        }
    }
}

/// Calls `each` with the byte ranges of each number in the part and in the run.
fn each_number(part: &KvPart, run: &Run, mut each: impl FnMut(Range<usize>, Range<usize>)) {
    let (dim, number) = (part.shape.dim(part.side), part.shape.number_bytes);
    let head = (run.head - part.heads.start) * part.head_bytes();
    for p in 0..part.positions.len() {
        match part.side {
            KvSide::Keys => {
                for d in run.quad * CELL..(run.quad * CELL + CELL).min(dim) {
                    let there = head + ((p / KV_BLOCK * dim + d) * KV_BLOCK + p % KV_BLOCK) * number;
                    let here = (p * CELL + d % CELL) * number;
                    each(there..there + number, here..here + number);
                }
            }
            KvSide::Values => {
                let (there, here) = (head + p * dim * number, p * dim.next_multiple_of(CELL) * number);
                each(there..there + dim * number, here..here + dim * number);
            }
        }
    }
}
