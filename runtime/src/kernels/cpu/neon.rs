//! Tile products for AArch64 with the dot-product extension: a quarter of a tile (4 rows) is one register of lanes.
//!
//! `sdot` multiplies signed bytes, so 8-bit codes are taken less 128 (shorter ones fit as they are), which the zero
//! point makes good. The instruction is written as assembly because its intrinsic is not stable.
#![allow(unsafe_code)]

use super::attention::{Cell, Lanes};
use super::isa::{Isa, Kind};
use super::nested::{Activations, Tile};
use super::scalar;
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTOR, VECTORS, unit_bytes};
use std::arch::aarch64::*;
use std::arch::asm;

/// The codes of 4 rows of a unit, one register a vector.
type Quarter = [uint8x16_t; VECTORS];

/// The codes of 4 rows of unit `u`: see `quant::layout` for what lies where.
#[inline(always)]
unsafe fn unpack<const N: usize>(planes: &[*const u8; 5], u: usize, rows: usize) -> Quarter {
    // SAFETY: NEON is AArch64's baseline; the caller vouches for unit `u` in the first N planes.
    unsafe {
        let load =
            |p: usize, half: usize| vld1q_u8(planes[p].add(u * unit_bytes(p) + half * VECTOR + 4 * rows));
        let mut out = [vdupq_n_u8(0); VECTORS];
        // The two bits of each vector in a 2-bit plane.
        let two = |p: usize| -> Quarter {
            let (x, y, three) = (load(p, 0), load(p, 1), vdupq_n_u8(3));
            [
                vandq_u8(x, three),
                vandq_u8(y, three),
                vandq_u8(vshrq_n_u8::<2>(x), three),
                vandq_u8(vshrq_n_u8::<2>(y), three),
                vandq_u8(vshrq_n_u8::<4>(x), three),
                vandq_u8(vshrq_n_u8::<4>(y), three),
                vshrq_n_u8::<6>(x),
                vshrq_n_u8::<6>(y),
            ]
        };
        if N == 1 {
            return two(0);
        }
        let (x, y, first) = (load(0, 0), load(0, 1), load(1, 0));
        let mask = |bits: u8| vdupq_n_u8(bits);
        if N == 2 {
            let pairs = [
                vbslq_u8(mask(0x66), vshlq_n_u8::<1>(x), first),
                vbslq_u8(mask(0x66), vshlq_n_u8::<1>(y), vshrq_n_u8::<1>(first)),
                vbslq_u8(mask(0x66), vshrq_n_u8::<1>(x), vshrq_n_u8::<2>(first)),
                vbslq_u8(mask(0x66), vshrq_n_u8::<1>(y), vshrq_n_u8::<3>(first)),
            ];
            for (j, x) in pairs.into_iter().enumerate() {
                out[j] = vandq_u8(x, mask(7));
                out[j + 4] = vandq_u8(vshrq_n_u8::<4>(x), mask(7));
            }
            return out;
        }
        let second = load(2, 0);
        let odd = vbslq_u8(mask(0xaa), first, vshrq_n_u8::<1>(second));
        let even = vbslq_u8(mask(0xaa), vshlq_n_u8::<1>(first), second);
        // Shift and insert: fields 0 and 2 of `high` over those of `low`, and fields 1 and 3.
        let nibbles = |high: uint8x16_t, low: uint8x16_t| {
            (
                vbslq_u8(mask(0x33), low, vshlq_n_u8::<2>(high)),
                vbslq_u8(mask(0x33), vshrq_n_u8::<2>(low), high),
            )
        };
        let ((n0, n2), (n1, n3)) = (nibbles(x, even), nibbles(y, odd));
        for (j, x) in [n0, n1, n2, n3].into_iter().enumerate() {
            out[j] = vandq_u8(x, mask(15));
            out[j + 4] = vshrq_n_u8::<4>(x);
        }
        for p in 3..N {
            let low = two(p);
            for j in 0..VECTORS {
                out[j] = vorrq_u8(vshlq_n_u8::<2>(out[j]), low[j]);
            }
        }
        if N == 5 {
            out = out.map(|codes| veorq_u8(codes, mask(0x80)));
        }
        out
    }
}

/// Adds to each lane of `sum` the products of four codes with the `LANE`-th four of `q`.
macro_rules! sdot {
    ($sum:ident, $codes:expr, $q:expr, $lane:literal) => {
        asm!(
            ".arch_extension dotprod",
            concat!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[", $lane, "]"),
            sum = inout(vreg) $sum,
            a = in(vreg) $codes,
            b = in(vreg) $q,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
}

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    assert!(isa.kind() == Kind::Dotprod);
    // SAFETY: an `Isa` of this kind exists only where the extension was detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations and sums.
    unsafe {
        match t.level {
            1 => times::<1>(t, x, first, sums),
            2 => times::<2>(t, x, first, sums),
            3 => times::<3>(t, x, first, sums),
            4 => times::<4>(t, x, first, sums),
            _ => times::<5>(t, x, first, sums),
        }
    }
}

/// # Safety
/// The machine has the extension; `t` has N planes; `x` has its groups, and the tokens `first..`, one for each of `sums`.
unsafe fn times<const N: usize>(t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    let units = t.group / UNIT_COLS;
    // Codes less 128 stand 128 higher.
    let t = &Tile { middle: if N == 5 { t.middle + 128.0 } else { t.middle }, ..*t };
    for g in 0..t.zeros.len() / TILE_ROWS {
        let (q, a, sum) = x.group(g);
        let mut codes = [[[0u8; VECTOR]; VECTORS]; 2];
        for (u, codes) in codes[..units].iter_mut().enumerate() {
            for rows in (0..TILE_ROWS).step_by(4) {
                // SAFETY: group g has its units in every plane of the level; each store is 16 of a vector's 64 bytes.
                unsafe {
                    for (codes, x) in codes.iter_mut().zip(unpack::<N>(&planes, g * units + u, rows)) {
                        vst1q_u8(codes.as_mut_ptr().add(4 * rows), x);
                    }
                }
            }
        }
        for (n, sums) in (first..).zip(&mut *sums) {
            let mut dots = [0i32; TILE_ROWS];
            // SAFETY: every token is in `x`, whose groups are `units · 32` long; the machine has the extension.
            unsafe {
                let mut lanes = [vdupq_n_s32(0); 4];
                for (u, codes) in codes[..units].iter().enumerate() {
                    let q = q.as_ptr().add(n * t.group + u * UNIT_COLS);
                    for (half, codes) in codes.chunks_exact(4).enumerate() {
                        let q = vld1q_s8(q.add(16 * half));
                        for (r, lane) in lanes.iter_mut().enumerate() {
                            let mut total = *lane;
                            let rows = |j: usize| vld1q_u8(codes[j].as_ptr().add(16 * r));
                            sdot!(total, rows(0), q, "0");
                            sdot!(total, rows(1), q, "1");
                            sdot!(total, rows(2), q, "2");
                            sdot!(total, rows(3), q, "3");
                            *lane = total;
                        }
                    }
                }
                for (r, lane) in lanes.into_iter().enumerate() {
                    vst1q_s32(dots.as_mut_ptr().add(4 * r), lane);
                }
            }
            scalar::add(t, g, &dots, *a.get(n).unwrap_or(&0.0), *sum.get(n).unwrap_or(&0.0), sums);
        }
    }
}

/// Sixteen floats in four registers.
#[derive(Clone, Copy)]
pub(super) struct Lanes16([float32x4_t; 4]);

impl Lanes for Lanes16 {
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: NEON is AArch64's baseline, here and below.
        unsafe { Lanes16([vdupq_n_f32(x); 4]) }
    }

    #[inline(always)]
    unsafe fn load<T: Cell>(at: *const T) -> Self {
        // SAFETY: as above; sixteen numbers of either type, by the caller's promise.
        unsafe {
            let mut out = Self::splat(0.0);
            if T::HALF {
                for half in 0..2 {
                    let halves = vld1q_u16(at.cast::<u16>().add(8 * half));
                    let (low, high): (float32x4_t, float32x4_t);
                    asm!(
                        "fcvtl {low:v}.4s, {x:v}.4h",
                        "fcvtl2 {high:v}.4s, {x:v}.8h",
                        low = out(vreg) low,
                        high = lateout(vreg) high,
                        x = in(vreg) halves,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                    (out.0[2 * half], out.0[2 * half + 1]) = (low, high);
                }
            } else {
                out.0.iter_mut().enumerate().for_each(|(i, x)| *x = vld1q_f32(at.cast::<f32>().add(4 * i)));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as above.
        unsafe { self.0.into_iter().enumerate().for_each(|(i, x)| vst1q_f32(at.add(4 * i), x)) }
    }

    #[inline(always)]
    unsafe fn times_plus(self, x: f32, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let mut out = sum;
            out.0.iter_mut().zip(self.0).for_each(|(o, a)| *o = vfmaq_n_f32(*o, a, x));
            out
        }
    }
}
