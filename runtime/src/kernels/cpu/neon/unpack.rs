//! Merges planes to bytes with NEON, 4 rows of a unit at a time, by shifts and selects. `quant::layout`
//! defines the layout.

use crate::quant::{VECTOR, VECTORS, unit_bytes};
use std::arch::aarch64::*;

/// The codes of 4 rows of a unit, one register per vector.
pub(super) type Quarter = [uint8x16_t; VECTORS];

/// The codes of 4 rows of unit `u`, in the layout of `quant::layout`.
#[inline(always)]
pub(super) unsafe fn unpack<const N: usize>(planes: &[*const u8; 5], u: usize, rows: usize) -> Quarter {
    // SAFETY: NEON is AArch64's baseline; the caller guarantees unit `u` in the first N planes.
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
        // Bit selects: fields 0 and 2 of `high` over those of `low`, and fields 1 and 3.
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
        out
    }
}
