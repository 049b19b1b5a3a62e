//! Tile products for AArch64 cores with the dot-product extension, and with the one for matrices of bytes (i8mm): a
//! quarter of a tile (4 rows) is one register of lanes.
//!
//! One token's codes go from the planes to the products without leaving the registers ([`one`]). For several tokens, a
//! group is unpacked once and multiplied with four tokens at a time ([`many`]). A [`Core`] holds the differences
//! between cores. Integer sums are exact in any grouping; the float operations of a group ([`add_group`]) are the same
//! for one token and for many. Instructions whose intrinsics are not stable are written as assembly.
#![allow(unsafe_code)]

mod dotprod;
mod i8mm;
mod many;
#[cfg(test)]
mod tests;
mod unpack;

use super::activations::Activations;
use super::isa::{Isa, Kind};
use super::lanes::{Cell, Lanes};
use super::tiles::Tile;
use crate::quant::{
    GroupParams, MXFP4_LEAST, NARROW_BASE, NARROW_STEP, NARROW_ZERO, SHARED, TILE_ROWS, UNIT_COLS,
};
use dotprod::Dotprod;
use i8mm::I8mm;
use many::{Dots, Group, Unit, many};
use std::arch::aarch64::*;
use std::arch::asm;
use unpack::{Quarter, unpack};

/// The K of kernels for table codes, whose entries need the bits of this many planes. For other codes K is N.
const LOOKED_UP: usize = 5;

/// How a core multiplies codes with activations.
trait Core {
    /// Whether 8-bit codes are multiplied as signed bytes, minus 128, which the zero point compensates.
    /// Shorter codes fit into signed bytes.
    const SIGNED: bool;

    /// The instruction of [`Core::dot`].
    #[cfg(test)]
    const DOT: &'static str;

    /// Adds to each lane of `sum` the products of four codes with the `LANE`-th four of `q`.
    ///
    /// # Safety
    /// The machine has the core's instructions.
    unsafe fn dot<const LANE: usize>(sum: int32x4_t, codes: uint8x16_t, q: int8x16_t) -> int32x4_t;

    /// Stores the codes of rows `4 r ..` in the order in which [`Core::dots`] reads them.
    fn put(unit: &mut Unit, r: usize, codes: Quarter);

    /// A group's products with T tokens, an even number, for a tile's rows four by four. Each register of
    /// codes is used for all of the tokens, whose sums stay in registers.
    ///
    /// # Safety
    /// The machine has the core's instructions; `q` has `UNITS · 32` activations of each token.
    unsafe fn dots<const UNITS: usize, const T: usize>(codes: &Group, q: *const i8) -> Dots<T>;
}

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    // SAFETY: an `Isa` of these kinds exists only where the extensions were detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations and sums.
    unsafe {
        match isa.kind() {
            Kind::Scalar => unreachable!("the scalar kernel needs no extension"),
            Kind::Dotprod => any_level::<Dotprod>(t, x, first, sums),
            Kind::I8mm => any_level::<I8mm>(t, x, first, sums),
        }
    }
}

/// # Safety
/// The machine has the instructions of `C`; `x` has the groups of `t`, and the tokens `first..`, one for each of `sums`.
unsafe fn any_level<C: Core>(t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    // SAFETY: the caller guarantees it.
    unsafe {
        match (t.level, t.group, t.table) {
            (1, _, Some(_)) => times::<C, 1, LOOKED_UP, 1>(t, x, first, sums),
            (2, _, Some(_)) => times::<C, 2, LOOKED_UP, 1>(t, x, first, sums),
            (_, _, Some(_)) => times::<C, 3, LOOKED_UP, 1>(t, x, first, sums),
            (1, 64, _) => times::<C, 1, 1, 2>(t, x, first, sums),
            (2, 64, _) => times::<C, 2, 2, 2>(t, x, first, sums),
            (3, 64, _) => times::<C, 3, 3, 2>(t, x, first, sums),
            (4, 64, _) => times::<C, 4, 4, 2>(t, x, first, sums),
            (_, 64, _) => times::<C, 5, 5, 2>(t, x, first, sums),
            (1, _, _) => times::<C, 1, 1, 1>(t, x, first, sums),
            (2, _, _) => times::<C, 2, 2, 1>(t, x, first, sums),
            (3, _, _) => times::<C, 3, 3, 1>(t, x, first, sums),
            (4, _, _) => times::<C, 4, 4, 1>(t, x, first, sums),
            (_, _, _) => times::<C, 5, 5, 1>(t, x, first, sums),
        }
    }
}

/// # Safety
/// As [`any_level`]; `t` has N planes and groups of `UNITS · 32`, and a table if K is not N.
unsafe fn times<C: Core, const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    // Codes minus 128 need a middle that is 128 higher.
    let middle = if C::SIGNED && K == 5 { t.middle + 128.0 } else { t.middle };
    let t = &Tile { middle, ..*t };
    // SAFETY: the caller guarantees it.
    unsafe {
        match sums {
            [sums] => one::<C, N, K, UNITS>(t, x, first, sums),
            _ => many::<C, N, K, UNITS>(t, x, first, sums),
        }
    }
}

/// The entries of a tile's table; zeros if it has none.
#[inline(always)]
fn entries(t: &Tile) -> uint8x16_t {
    // SAFETY: NEON is AArch64's baseline; a table has sixteen entries.
    unsafe { t.table.map_or(vdupq_n_u8(0), |(entries, _)| vld1q_u8(entries.as_ptr())) }
}

/// The codes of 4 rows of unit `u`, in the form that `C` multiplies; looked up in the table if K is not N.
#[inline(always)]
unsafe fn codes<C: Core, const N: usize, const K: usize>(
    planes: &[*const u8; 5],
    table: uint8x16_t,
    u: usize,
    rows: usize,
) -> Quarter {
    // SAFETY: NEON is AArch64's baseline; the caller guarantees unit `u` in the first N planes.
    unsafe {
        let mut codes = unpack::<N>(planes, u, rows);
        if K != N {
            codes = codes.map(|codes| vqtbl1q_u8(table, codes));
        }
        if C::SIGNED && K == 5 { codes.map(|codes| veorq_u8(codes, vdupq_n_u8(0x80))) } else { codes }
    }
}

/// Converts the integers of several rows to floats: the scale, and the offset that is added to every code.
/// Both are in steps of the level's codes; a step is a power of two, so nothing is rounded.
#[derive(Clone, Copy)]
struct Affine {
    scale: float32x4_t,
    centre: float32x4_t,
}

/// The conversions of a group's rows, four by four.
type Params = [Affine; 4];

#[inline(always)]
unsafe fn params(t: &Tile, g: usize) -> Params {
    // SAFETY: NEON is AArch64's baseline; the caller guarantees group g.
    unsafe {
        let scales = t.scales.as_ptr().add(g * t.params.scale_bytes());
        let zeros = t.zeros.as_ptr().add(g * t.params.zero_bytes());
        let ([s0, s1, s2, s3], zeros) = match t.params {
            GroupParams::Wide => {
                let [s0, s1] = singles(vreinterpretq_u16_u8(vld1q_u8(scales)));
                let [s2, s3] = singles(vreinterpretq_u16_u8(vld1q_u8(scales.add(TILE_ROWS))));
                ([s0, s1, s2, s3], vld1q_u8(zeros))
            }
            GroupParams::Mxfp4 => (powers(vld1q_u8(scales)), vdupq_n_u8(t.params.no_zero())),
            GroupParams::Iq4Nl => {
                let [s0, s1] = singles(vreinterpretq_u16_u8(vld1q_u8(scales)));
                let [s2, s3] = singles(vreinterpretq_u16_u8(vld1q_u8(scales.add(TILE_ROWS))));
                ([s0, s1, s2, s3], vdupq_n_u8(t.params.no_zero()))
            }
            GroupParams::Iq4Xs => {
                let shared = t.zeros.as_ptr().add(2 * (g / SHARED * TILE_ROWS));
                let [s0, s1] = singles(vreinterpretq_u16_u8(vld1q_u8(shared)));
                let [s2, s3] = singles(vreinterpretq_u16_u8(vld1q_u8(shared.add(TILE_ROWS))));
                let own = vld1q_s8(scales.cast());
                let (low, high) = (vmovl_s8(vget_low_s8(own)), vmovl_high_s8(own));
                let times = |shared, own| vmulq_f32(shared, vcvtq_f32_s32(own));
                let all = [
                    times(s0, vmovl_s16(vget_low_s16(low))),
                    times(s1, vmovl_high_s16(low)),
                    times(s2, vmovl_s16(vget_low_s16(high))),
                    times(s3, vmovl_high_s16(high)),
                ];
                (all, vdupq_n_u8(t.params.no_zero()))
            }
            GroupParams::Narrow => {
                let pairs = vld1_u8(zeros);
                let nibbles = vcombine_u8(vand_u8(pairs, vdup_n_u8(15)), vshr_n_u8::<4>(pairs));
                let zeros = vmlaq_u8(vdupq_n_u8(NARROW_ZERO), nibbles, vdupq_n_u8(NARROW_STEP));
                (narrow_scales(vld1q_u8(scales)), zeros)
            }
        };
        let (low, high) = (vmovl_u8(vget_low_u8(zeros)), vmovl_high_u8(zeros));
        let affine = |scale, zeros| Affine {
            scale: vmulq_n_f32(scale, t.step),
            centre: vmulq_n_f32(vsubq_f32(vdupq_n_f32(t.middle), vcvtq_f32_u32(zeros)), 1.0 / t.step),
        };
        [
            affine(s0, vmovl_u16(vget_low_u16(low))),
            affine(s1, vmovl_high_u16(low)),
            affine(s2, vmovl_u16(vget_low_u16(high))),
            affine(s3, vmovl_high_u16(high)),
        ]
    }
}

/// Converts sixteen narrow scales to floats.
#[inline(always)]
unsafe fn narrow_scales(x: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: NEON is AArch64's baseline.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
        let scale = |x| vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32::<19>(x), vdupq_n_u32(NARROW_BASE)));
        [
            scale(vmovl_u16(vget_low_u16(low))),
            scale(vmovl_high_u16(low)),
            scale(vmovl_u16(vget_low_u16(high))),
            scale(vmovl_high_u16(high)),
        ]
    }
}

/// Converts sixteen exponents to powers of two.
#[inline(always)]
unsafe fn powers(x: uint8x16_t) -> [float32x4_t; 4] {
    // SAFETY: NEON is AArch64's baseline.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x));
        let power = |x| vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32::<23>(x), vdupq_n_u32(MXFP4_LEAST)));
        [
            power(vmovl_u16(vget_low_u16(low))),
            power(vmovl_high_u16(low)),
            power(vmovl_u16(vget_low_u16(high))),
            power(vmovl_high_u16(high)),
        ]
    }
}

/// Converts eight floats from half to single precision.
#[inline(always)]
fn singles(halves: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: NEON is AArch64's baseline; writes two registers.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {x:v}.4h",
            "fcvtl2 {high:v}.4s, {x:v}.8h",
            low = out(vreg) low,
            high = lateout(vreg) high,
            x = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Adds a group's products with one token, whose scale is `a` and whose sum is `sum`, to the totals of its rows.
#[inline(always)]
fn add_group(p: Affine, dot: int32x4_t, a: f32, sum: f32, total: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is AArch64's baseline.
    unsafe {
        let value = vfmaq_n_f32(vmulq_n_f32(p.centre, sum), vcvtq_f32_s32(dot), a);
        vfmaq_f32(total, p.scale, value)
    }
}

/// One token.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn one<C: Core, const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    n: usize,
    sums: &mut [f32; TILE_ROWS],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    // SAFETY: as the caller guarantees, group g has its units in every plane of the level, its 16 scales and
    // zero points, and its activations.
    unsafe {
        let mut totals = [vdupq_n_f32(0.0); 4];
        let table = entries(t);
        for g in 0..t.groups {
            #[cfg(test)]
            tests::uses(C::DOT);
            let (q, a, sum) = x.group(g);
            let q = q.as_ptr().add(n * UNITS * UNIT_COLS);
            let mut dots = [vdupq_n_s32(0); 4];
            for u in 0..UNITS {
                let q = q.add(u * UNIT_COLS);
                let q = [vld1q_s8(q), vld1q_s8(q.add(16))];
                for (r, dot) in dots.iter_mut().enumerate() {
                    let codes = codes::<C, N, K>(&planes, table, g * UNITS + u, 4 * r);
                    for (codes, q) in codes.chunks_exact(4).zip(q) {
                        *dot = C::dot::<0>(*dot, codes[0], q);
                        *dot = C::dot::<1>(*dot, codes[1], q);
                        *dot = C::dot::<2>(*dot, codes[2], q);
                        *dot = C::dot::<3>(*dot, codes[3], q);
                    }
                }
            }
            let (a, sum) = (*a.get_unchecked(n), *sum.get_unchecked(n));
            for ((p, dot), total) in params(t, g).into_iter().zip(dots).zip(&mut totals) {
                *total = add_group(p, dot, a, sum, *total);
            }
        }
        for (r, total) in totals.into_iter().enumerate() {
            vst1q_f32(sums.as_mut_ptr().add(4 * r), total);
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
        // SAFETY: as above; sixteen numbers of either type, as the caller guarantees.
        unsafe {
            let mut out = Self::splat(0.0);
            if T::HALF {
                for half in 0..2 {
                    let [low, high] = singles(vld1q_u16(at.cast::<u16>().add(8 * half)));
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
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let mut out = sum;
            out.0.iter_mut().zip(self.0).zip(x.0).for_each(|((o, a), x)| *o = vfmaq_f32(*o, a, x));
            out
        }
    }
}
