//! Tile products without special instructions: the specification for every other instruction set. Compilers
//! vectorise these loops, for machines without a better kernel.

#![allow(unsafe_code)]

use super::activations::Activations;
use super::lanes::{Cell, Lanes};
use super::tiles::Tile;
use crate::quant::{PLANE_BITS, TILE_ROWS, UNIT_COLS, VECTOR, VECTORS, unit_bytes};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// The codes of unit `u`, one byte each; table codes are looked up.
pub(super) fn unpack(t: &Tile, u: usize, out: &mut [[u8; VECTOR]; VECTORS]) {
    *out = [[0; VECTOR]; VECTORS];
    for (p, bits) in PLANE_BITS.into_iter().enumerate().take(t.level) {
        let bytes = &t.planes[p][u * unit_bytes(p)..][..unit_bytes(p)];
        for (j, out) in out.iter_mut().enumerate() {
            if bits == 2 {
                let half = &bytes[VECTOR * (j % 2)..][..VECTOR];
                out.iter_mut().zip(half).for_each(|(c, b)| *c = *c << 2 | b >> (j / 2 * 2) & 3);
            } else {
                out.iter_mut().zip(bytes).for_each(|(c, b)| *c = *c << 1 | b >> j & 1);
            }
        }
    }
    if let Some((table, _)) = t.table {
        out.as_flattened_mut().iter_mut().for_each(|code| *code = table[usize::from(*code & 15)]);
    }
}

/// Adds `Σ codes · q` of a unit to each row's sum.
#[inline(always)]
pub(super) fn dots(codes: &[[u8; VECTOR]; VECTORS], q: &[i8], dots: &mut [i32; TILE_ROWS]) {
    for (codes, q) in codes.iter().zip(q.chunks_exact(4)) {
        for row in 0..TILE_ROWS {
            for c in 0..4 {
                dots[row] += i32::from(codes[4 * row + c]) * i32::from(q[c]);
            }
        }
    }
}

/// Adds a group's dot products to the sums: `s · (step · a · dot + (middle − zero) · sum)`.
#[inline(always)]
pub(super) fn add(
    t: &Tile,
    g: usize,
    dots: &[i32; TILE_ROWS],
    a: f32,
    sum: f32,
    sums: &mut [f32; TILE_ROWS],
) {
    for row in 0..TILE_ROWS {
        let (scale, zero) = t.params.read(t.scales, t.zeros, g * TILE_ROWS + row);
        let centre = (t.middle - f32::from(zero)) * sum;
        sums[row] += scale * (dots[row] as f32 * (t.step * a) + centre);
    }
}

pub(super) fn tile_times(t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    let units = t.group / UNIT_COLS;
    let mut codes = [[[0u8; VECTOR]; VECTORS]; 2];
    for g in 0..t.groups {
        codes[..units].iter_mut().enumerate().for_each(|(u, codes)| unpack(t, g * units + u, codes));
        let (q, scale, sum) = x.group(g);
        for (n, sums) in (first..).zip(&mut *sums) {
            let q = &q[n * t.group..][..t.group];
            let mut total = [0i32; TILE_ROWS];
            codes[..units]
                .iter()
                .zip(q.chunks_exact(UNIT_COLS))
                .for_each(|(codes, q)| dots(codes, q, &mut total));
            add(t, g, &total, scale[n], sum[n], sums);
        }
    }
}

/// Sixteen floats, in an array that compilers vectorise.
#[derive(Clone, Copy)]
pub(super) struct Lanes16([f32; 16]);

impl Lanes for Lanes16 {
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Lanes16([x; 16])
    }

    #[inline(always)]
    unsafe fn load<T: Cell>(at: *const T) -> Self {
        // SAFETY: sixteen numbers of either type, as the caller guarantees.
        unsafe {
            if T::HALF {
                let halves = at.cast::<[f16; 16]>().read_unaligned();
                let mut out = [0.0; 16];
                halves.convert_to_f32_slice(&mut out);
                Lanes16(out)
            } else {
                Lanes16(at.cast::<[f32; 16]>().read_unaligned())
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller guarantees it.
        unsafe { at.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self {
        let mut out = sum;
        out.0.iter_mut().zip(self.0).zip(x.0).for_each(|((o, a), x)| *o += a * x);
        out
    }
}
