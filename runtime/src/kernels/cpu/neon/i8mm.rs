//! The extension for matrices of bytes: `usmmla` multiplies 2 rows of 8 unsigned codes with 8 activations of
//! 2 tokens, and `usdot` is the dot product of unsigned codes.
//!
//! For 16 columns of a tile and 4 tokens this takes 32 `usmmla`, with 16 registers of codes and 4 of
//! activations. The dot product needs 64 instructions (`benches/records/cpu-zen5.md`, counted, not timed).

use super::Core;
use super::many::{Dots, Group, Unit};
use super::unpack::Quarter;
use crate::quant::UNIT_COLS;
use std::arch::aarch64::*;
use std::arch::asm;

/// A core with the extension.
pub(super) struct I8mm;

/// Adds `[row 0 · token 0, row 0 · token 1, row 1 · token 0, row 1 · token 1]`.
#[inline(always)]
unsafe fn usmmla(mut sum: int32x4_t, codes: uint8x16_t, q: int8x16_t) -> int32x4_t {
    // SAFETY: the machine has the extension, as the caller guarantees; writes one register.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "usmmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) codes,
            b = in(vreg) q,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

impl Core for I8mm {
    const SIGNED: bool = false;
    #[cfg(test)]
    const DOT: &'static str = "usdot";

    #[inline(always)]
    unsafe fn dot<const LANE: usize>(mut sum: int32x4_t, codes: uint8x16_t, q: int8x16_t) -> int32x4_t {
        // SAFETY: the machine has the extension; writes one register.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "usdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
                sum = inout(vreg) sum,
                a = in(vreg) codes,
                b = in(vreg) q,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }

    /// Groups of eight columns. Two vectors hold four columns of a row each, so these are placed side by side.
    #[inline(always)]
    fn put(unit: &mut Unit, r: usize, codes: Quarter) {
        for (eight, codes) in unit.chunks_exact_mut(8).zip(codes.chunks_exact(2)) {
            // SAFETY: NEON is AArch64's baseline.
            unsafe {
                let [left, right] = [codes[0], codes[1]].map(|x| vreinterpretq_u32_u8(x));
                eight[2 * r] = vreinterpretq_u8_u32(vzip1q_u32(left, right));
                eight[2 * r + 1] = vreinterpretq_u8_u32(vzip2q_u32(left, right));
            }
        }
    }

    #[inline(always)]
    unsafe fn dots<const UNITS: usize, const T: usize>(codes: &Group, q: *const i8) -> Dots<T> {
        const { assert!(T.is_multiple_of(2)) }
        #[cfg(test)]
        super::tests::uses("usmmla");
        // SAFETY: the machine has the extension, and `q` has T tokens of the group, as the caller guarantees.
        unsafe {
            // For tokens n and n + 1: rows 4 r and 4 r + 1 in [n][r], the next two in [n + 1][r].
            let mut dots = [[vdupq_n_s32(0); 4]; T];
            for (u, unit) in codes[..UNITS].iter().enumerate() {
                for (half, codes) in unit.chunks_exact(16).enumerate() {
                    let q = q.add(u * UNIT_COLS + 16 * half);
                    let load = |n: usize| vld1q_s64(q.add(n * UNITS * UNIT_COLS).cast());
                    // The first eight columns of tokens n and n + 1 in [n], the next eight in [n + 1].
                    let mut x = [vdupq_n_s8(0); T];
                    for (pair, x) in x.chunks_exact_mut(2).enumerate() {
                        let (a, b) = (load(2 * pair), load(2 * pair + 1));
                        x[0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
                        x[1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
                    }
                    for (eight, codes) in codes.chunks_exact(8).enumerate() {
                        for (i, codes) in codes.iter().enumerate() {
                            for (dots, x) in dots.chunks_exact_mut(2).zip(x.chunks_exact(2)) {
                                let dot = &mut dots[i % 2][i / 2];
                                *dot = usmmla(*dot, *codes, x[eight]);
                            }
                        }
                    }
                }
            }
            for dots in dots.chunks_exact_mut(2) {
                let [first, second] = dots else { unreachable!("chunks of two") };
                for (a, b) in first.iter_mut().zip(second) {
                    (*a, *b) = (vuzp1q_s32(*a, *b), vuzp2q_s32(*a, *b));
                }
            }
            dots
        }
    }
}
