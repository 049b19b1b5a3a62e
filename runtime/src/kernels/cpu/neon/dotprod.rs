//! The dot-product extension: `sdot` adds up four signed products in each lane.

use super::Core;
use super::many::{Dots, Group, Unit};
use super::unpack::Quarter;
use crate::quant::UNIT_COLS;
use std::arch::aarch64::*;
use std::arch::asm;

/// A core that has at least this extension.
pub(super) struct Dotprod;

impl Core for Dotprod {
    const SIGNED: bool = true;
    #[cfg(test)]
    const DOT: &'static str = "sdot";

    #[inline(always)]
    unsafe fn dot<const LANE: usize>(mut sum: int32x4_t, codes: uint8x16_t, q: int8x16_t) -> int32x4_t {
        // SAFETY: the machine has the extension; writes one register.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
                sum = inout(vreg) sum,
                a = in(vreg) codes,
                b = in(vreg) q,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }

    /// Vector after vector.
    #[inline(always)]
    fn put(unit: &mut Unit, r: usize, codes: Quarter) {
        unit.chunks_exact_mut(4).zip(codes).for_each(|(vector, codes)| vector[r] = codes);
    }

    #[inline(always)]
    unsafe fn dots<const UNITS: usize, const T: usize>(codes: &Group, q: *const i8) -> Dots<T> {
        #[cfg(test)]
        super::tests::uses("sdot, tokens");
        // SAFETY: the machine has the extension, and `q` has T tokens of the group, as the caller guarantees.
        unsafe {
            let mut dots = [[vdupq_n_s32(0); 4]; T];
            for (u, unit) in codes[..UNITS].iter().enumerate() {
                for (half, codes) in unit.chunks_exact(16).enumerate() {
                    let q = q.add(u * UNIT_COLS + 16 * half);
                    let mut x = [vdupq_n_s8(0); T];
                    x.iter_mut().enumerate().for_each(|(n, x)| *x = vld1q_s8(q.add(n * UNITS * UNIT_COLS)));
                    vector::<0, T>(&mut dots, codes, &x);
                    vector::<1, T>(&mut dots, codes, &x);
                    vector::<2, T>(&mut dots, codes, &x);
                    vector::<3, T>(&mut dots, codes, &x);
                }
            }
            dots
        }
    }
}

/// Products of vector LANE of four with the LANE-th four activations of each token. Each loaded register is
/// used for all tokens.
#[inline(always)]
unsafe fn vector<const LANE: usize, const T: usize>(
    dots: &mut Dots<T>,
    codes: &[uint8x16_t],
    x: &[int8x16_t; T],
) {
    for (r, codes) in codes[4 * LANE..][..4].iter().enumerate() {
        for (dots, x) in dots.iter_mut().zip(x) {
            // SAFETY: the machine has the extension, as the caller guarantees.
            dots[r] = unsafe { Dotprod::dot::<LANE>(dots[r], *codes, *x) };
        }
    }
}
