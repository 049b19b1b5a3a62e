//! Unpacking and dot products for AArch64 with the dot-product extension.
//!
//! `sdot` multiplies signed bytes, so 8-bit codes are stored less 128 (shorter ones fit as they are); [`super::nested`]
//! adds the difference back through the zero point. The instruction is written as assembly because its intrinsic is not
//! stable; the rest is plain code that the compiler vectorises, NEON being the baseline.
#![allow(unsafe_code)]

use super::isa::{Isa, Kind};
use super::nested::{RUN, Token};
use super::scalar;
use std::arch::aarch64::{int8x16_t, int32x4_t, vaddq_s32, vdupq_n_s32, vld1q_s8, vst1q_s32};
use std::arch::asm;

/// One byte per code of run `run`; of 8-bit codes, the code less 128.
pub(super) fn unpack(group: usize, planes: &[&[u8]; 5], n: usize, run: usize, out: &mut [u8; RUN]) {
    scalar::unpack(group, planes, n, run, out);
    if n == 5 {
        out.iter_mut().for_each(|code| *code ^= 0x80);
    }
}

/// `Σ_g scale_g · x.scale_g · Σ codes · q`, groups in order.
pub(super) fn dot(isa: Isa, group: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    assert!(isa.kind() == Kind::Dotprod);
    let groups = codes.chunks_exact(group).zip(x.q.chunks_exact(group));
    let mut sum = 0.0;
    for ((codes, q), (s, a)) in groups.zip(scale.iter().zip(x.scale)) {
        let mut dots = [0i32; 4];
        // SAFETY: an `Isa` of this kind exists only where the extension was detected; both slices are `group` bytes, a
        // multiple of 16, and the loads and the store need no alignment.
        unsafe {
            let mut total = vdupq_n_s32(0);
            for at in (0..group).step_by(32) {
                let first = sdot(vld1q_s8(codes.as_ptr().add(at).cast()), vld1q_s8(q.as_ptr().add(at)));
                let second =
                    sdot(vld1q_s8(codes.as_ptr().add(at + 16).cast()), vld1q_s8(q.as_ptr().add(at + 16)));
                total = vaddq_s32(total, vaddq_s32(first, second));
            }
            vst1q_s32(dots.as_mut_ptr(), total);
        }
        sum += s * a * dots.iter().sum::<i32>() as f32;
    }
    sum
}

/// Four sums of four products each.
///
/// # Safety
/// The machine has the dot-product extension.
#[inline(always)]
unsafe fn sdot(a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: NEON is AArch64's baseline; register operands only; the caller vouches for the instruction.
    unsafe {
        let mut sum = vdupq_n_s32(0);
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
        sum
    }
}
