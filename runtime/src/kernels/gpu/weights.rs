//! Weights on the device: matrices, uploaded once and identified by the address of their bytes on the host, and
//! vectors.
//!
//! A nested matrix has the layout of `quant/layout.rs`, plane after plane. An unquantized one is rearranged into
//! the same tiles, so that kernels read both alike. A matrix larger than a binding is split along its rows.

use super::device::{Device, Memory};
use crate::error::Result;
use crate::kernels::RopeTable;
use crate::quant::{Fit, Matrix, Nested, PlaneLayout, Shape, TILE_ROWS, UNIT_COLS, VECTORS};
use std::collections::HashMap;
use std::sync::Arc;

/// A range of rows of a matrix on the device.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) memory: Arc<Memory>,
    pub(super) form: Form,
    /// The first row, at the start of a tile.
    pub(super) first: usize,
    pub(super) rows: usize,
}

/// From this bit on, above the group size, a word has the number of the parameters' format (`weights_nested.wgsl`).
const KIND_BIT: u32 = 8;

/// How kernels read a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    /// The index of its first word.
    pub(super) base: u32,
    /// 0 if it is unquantized.
    pub(super) planes: u32,
    /// Weights per group, and above them the number of its parameter format ([`KIND_BIT`]).
    pub(super) group: u32,
    pub(super) alpha: f32,
    pub(super) centre: f32,
}

/// A level's correction as kernels read it: the factor of codes, and the term added to them before. Kernels
/// do not divide, because a compiler may fuse a quotient and a difference in one kernel and not in another.
pub(super) fn centred(fit: Fit) -> [f32; 2] {
    let alpha = if fit.alpha.abs() < 1e-20 { 1e-20 } else { fit.alpha };
    [alpha, fit.beta / alpha]
}

impl Form {
    pub(super) fn of(m: &Matrix, base: u32) -> Form {
        match m {
            Matrix::F32 { .. } => Form { base, planes: 0, group: 32, alpha: 1.0, centre: 0.0 },
            Matrix::Nested(n) => {
                let [alpha, centre] = centred(n.fit());
                let kind = u32::from(n.shape().params.number()) << KIND_BIT;
                let (planes, group) = (n.level().planes() as u32, n.shape().group as u32 | kind);
                Form { base, planes, group, alpha, centre }
            }
        }
    }
}

/// Bytes of `tiles` tiles of a matrix on the device.
pub(super) fn bytes(m: &Matrix, tiles: usize) -> usize {
    match m {
        Matrix::F32 { cols, .. } => tiles * TILE_ROWS * cols.next_multiple_of(UNIT_COLS) * 4,
        Matrix::Nested(n) => {
            let shape = Shape { rows: tiles * TILE_ROWS, ..n.shape() };
            (0..n.level().planes()).map(|p| shape.plane(p).len).sum()
        }
    }
}

pub(super) fn tiles(m: &Matrix) -> usize {
    m.rows().div_ceil(TILE_ROWS)
}

/// Calls `write` with the bytes of `count` tiles from `first` on and their offsets, in the layout of [`bytes`]. For a
/// nested matrix only the planes from `plane` on, at their offsets in the full layout.
pub(super) fn pieces(
    m: &Matrix,
    first: usize,
    count: usize,
    plane: usize,
    write: &mut dyn FnMut(usize, &[u8]),
) {
    match m {
        Matrix::F32 { rows, cols, data } => plain_pieces(data, *rows, *cols, first, count, write),
        Matrix::Nested(n) => {
            let mut at = 0;
            for p in 0..n.level().planes() {
                let layout = Shape { rows: count * TILE_ROWS, ..n.shape() }.plane(p);
                let len = layout.len;
                if p >= plane {
                    plane_pieces(n, p, first, count, layout, &mut |offset, bytes| write(at + offset, bytes));
                }
                at += len;
            }
        }
    }
}

/// Tile after tile; within a tile, each vector of a unit for all rows.
fn plain_pieces(
    data: &[f32],
    rows: usize,
    cols: usize,
    first: usize,
    count: usize,
    write: &mut dyn FnMut(usize, &[u8]),
) {
    let vectors = cols.div_ceil(UNIT_COLS) * VECTORS;
    let value = |row: usize, col: usize| if row < rows && col < cols { data[row * cols + col] } else { 0.0 };
    let mut tile = vec![0.0f32; vectors * TILE_ROWS * 4];
    for t in 0..count {
        for (i, to) in tile.iter_mut().enumerate() {
            let (vector, row, c) = (i / (4 * TILE_ROWS), i / 4 % TILE_ROWS, i % 4);
            *to = value((first + t) * TILE_ROWS + row, 4 * vector + c);
        }
        write(4 * t * tile.len(), bytemuck::cast_slice(&tile));
    }
}

/// Several tiles of plane `p`, directly from the host's memory.
fn plane_pieces(
    n: &Nested,
    p: usize,
    first: usize,
    count: usize,
    layout: PlaneLayout,
    write: &mut dyn FnMut(usize, &[u8]),
) {
    let (shape, end) = (n.shape(), first + count);
    let tile = shape.tile_bytes(p);
    write(layout.codes.start, &n.codes(p)[first * tile..end * tile]);
    if p == 0 {
        let scales = shape.groups() * shape.params.scale_bytes();
        let zeros = shape.groups() * shape.params.zero_bytes();
        write(layout.scales.start, &n.scales()[first * scales..end * scales]);
        if zeros > 0 {
            write(layout.zeros.start, &n.zeros()[first * zeros..end * zeros]);
        }
    }
}

/// The address of a matrix's bytes on the host, and the number of planes used.
type Key = (usize, usize);

fn key(m: &Matrix) -> Key {
    match m {
        Matrix::F32 { data, .. } => (data.as_ptr() as usize, 0),
        Matrix::Nested(n) => (n.codes(0).as_ptr() as usize, n.level().planes()),
    }
}

#[derive(Default)]
pub(super) struct Weights {
    /// The value contains a clone of the host's matrix, which keeps its bytes at their address.
    matrices: HashMap<Key, (Arc<[Placed]>, Matrix)>,
    vectors: HashMap<Key, (Arc<Memory>, Vec<f32>)>,
    /// Rope tables by name, with their length.
    ropes: HashMap<u64, (Arc<Memory>, usize)>,
    pub(super) uploaded_bytes: u64,
}

impl Weights {
    /// The device's rows of every matrix. New matrices share a buffer if they fit one.
    ///
    /// # Errors
    /// `Device` if there is not enough memory.
    pub(super) fn place(&mut self, gpu: &Device, matrices: &[&Matrix]) -> Result<Vec<Arc<[Placed]>>> {
        let mut new: Vec<&Matrix> = Vec::new();
        for &m in matrices {
            if !self.matrices.contains_key(&key(m)) && !new.iter().any(|other| key(other) == key(m)) {
                new.push(m);
            }
        }
        let total: usize = new.iter().map(|m| bytes(m, tiles(m))).sum();
        // One dispatch covers the tiles of all matrices in a buffer.
        let groups: usize = new.iter().map(|m| tiles(m)).sum();
        if new.len() > 1 && total as u64 <= gpu.max_binding && groups <= gpu.max_groups {
            self.upload_together(gpu, &new)?;
        } else {
            for m in new {
                let parts = self.upload_in_parts(gpu, m)?;
                self.matrices.insert(key(m), (parts.into(), m.clone()));
            }
        }
        Ok(matrices.iter().map(|m| self.matrices[&key(m)].0.clone()).collect())
    }

    fn upload(&mut self, gpu: &Device, to: &Memory, base: usize, m: &Matrix, first: usize, count: usize) {
        pieces(m, first, count, 0, &mut |at, bytes| {
            gpu.stage(to, (base + at) as u64, bytes);
            self.uploaded_bytes += bytes.len() as u64;
        });
    }

    fn upload_together(&mut self, gpu: &Device, new: &[&Matrix]) -> Result<()> {
        let total: usize = new.iter().map(|m| bytes(m, tiles(m))).sum();
        let memory = Arc::new(gpu.memory(total as u64, "weights")?);
        let mut base = 0;
        for m in new {
            self.upload(gpu, &memory, base, m, 0, tiles(m));
            let form = Form::of(m, (base / 4) as u32);
            let placed = Placed { memory: memory.clone(), form, first: 0, rows: m.rows() };
            self.matrices.insert(key(m), ([placed].into(), (*m).clone()));
            base += bytes(m, tiles(m));
        }
        Ok(())
    }

    fn upload_in_parts(&mut self, gpu: &Device, m: &Matrix) -> Result<Vec<Placed>> {
        // The arrays of a plane are padded to a line: a few hundred bytes beyond the tiles' bytes.
        let most = (gpu.max_binding as usize).saturating_sub(1024) / bytes(m, 1).max(1);
        let most = most.clamp(1, gpu.max_groups);
        let mut parts = Vec::new();
        for first in (0..tiles(m)).step_by(most) {
            let count = most.min(tiles(m) - first);
            let memory = Arc::new(gpu.memory(bytes(m, count) as u64, "weights")?);
            self.upload(gpu, &memory, 0, m, first, count);
            let rows = (m.rows() - first * TILE_ROWS).min(count * TILE_ROWS);
            parts.push(Placed { memory, form: Form::of(m, 0), first: first * TILE_ROWS, rows });
        }
        Ok(parts)
    }

    /// A vector on the device, computed by `make` if it is new. `name` is the host's slice that identifies it.
    ///
    /// # Errors
    /// `Device` if there is not enough memory.
    pub(super) fn vector(
        &mut self,
        gpu: &Device,
        name: &[f32],
        make: impl FnOnce() -> Vec<f32>,
    ) -> Result<Arc<Memory>> {
        let key = (name.as_ptr() as usize, name.len());
        if let Some((memory, was)) = self.vectors.get(&key) {
            debug_assert!(same(was, name), "weights may not change or move");
            return Ok(memory.clone());
        }
        let values = make();
        let memory = Arc::new(gpu.memory(4 * values.len() as u64, "a vector")?);
        gpu.stage(&memory, 0, bytemuck::cast_slice(&values));
        self.uploaded_bytes += 4 * values.len() as u64;
        let copy = if cfg!(debug_assertions) { name.to_vec() } else { Vec::new() };
        self.vectors.insert(key, (memory.clone(), copy));
        Ok(memory)
    }

    /// `[positions, 2, half]`: cosines and sines for at least the positions of `table`.
    ///
    /// # Errors
    /// `Device` if there is not enough memory.
    pub(super) fn rope(&mut self, gpu: &Device, table: &RopeTable) -> Result<Arc<Memory>> {
        let half = table.dims / 2;
        if let Some((memory, len)) = self.ropes.get(&table.name)
            && *len >= table.cos.len()
        {
            return Ok(memory.clone());
        }
        let rows = table.cos.chunks_exact(half).zip(table.sin.chunks_exact(half));
        let values: Vec<f32> = rows.flat_map(|(c, s)| c.iter().chain(s).copied()).collect();
        let memory = Arc::new(gpu.memory(4 * values.len() as u64, "rotations")?);
        gpu.stage(&memory, 0, bytemuck::cast_slice(&values));
        self.ropes.insert(table.name, (memory.clone(), table.cos.len()));
        Ok(memory)
    }
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
