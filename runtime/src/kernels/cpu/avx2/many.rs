//! Products of several tokens with AVX2: a group is unpacked to the stack and multiplied with four tokens at a
//! time. All functions are inlined into functions that enable the features; the assembly enables them itself.

use super::unpack::{Entries, codes};
use super::{add_group, four, params, widen};
use crate::kernels::cpu::activations::Activations;
use crate::kernels::cpu::tiles::Tile;
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTORS};
use std::arch::asm;
use std::arch::x86_64::*;

/// The vectors of a group's units, 8 rows and 8 rows.
type Group = [[__m256i; 2]; 2 * VECTORS];

/// Several tokens: a group is unpacked once and multiplied with four tokens at a time.
///
/// # Safety
/// As [`super::times`].
#[inline(always)]
pub(super) unsafe fn many<const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    // SAFETY: as in `super::one`, for every token.
    unsafe {
        let table = Entries::of(t);
        let mut uppers: Group = [[_mm256_setzero_si256(); 2]; 2 * VECTORS];
        let mut lows = uppers;
        for g in 0..t.groups {
            for u in 0..UNITS {
                for half in 0..2 {
                    let (code, low) = codes::<N, K>(&planes, &table, g * UNITS + u, 8 * half);
                    for j in 0..VECTORS {
                        uppers[u * VECTORS + j][half] = code[j];
                        if K == 5 {
                            lows[u * VECTORS + j][half] = low[j];
                        }
                    }
                }
            }
            let group = (&uppers, &lows, [params(t, g, 0), params(t, g, 8)]);
            let (mut fours, mut n) = (sums.chunks_exact_mut(4), first);
            for sums in fours.by_ref() {
                block::<K, UNITS, 4>(t.step, group, x, g, n, sums);
                n += 4;
            }
            for (i, sums) in fours.into_remainder().chunks_mut(1).enumerate() {
                block::<K, UNITS, 1>(t.step, group, x, g, n + i, sums);
            }
        }
    }
}

/// Sums of 8 rows and 8 rows, for each of T tokens.
type Sums<const T: usize> = [[__m256i; 2]; T];

/// `Σ codes · q` of several vectors in 16 bits, for any number of tokens.
#[inline(always)]
unsafe fn products<const T: usize>(codes: &[[__m256i; 2]], at: &[*const i8; T], first: usize) -> Sums<T> {
    // SAFETY: the caller guarantees the activations of `codes` from vector `first` on, and the features.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); 2]; T];
        if T == 4 {
            let at = [at[0], at[1], at[2], at[3]];
            for (to, from) in sums.iter_mut().zip(products_4(codes, at, first)) {
                *to = from;
            }
            return sums;
        }
        for (j, code) in codes.iter().enumerate() {
            for (sums, at) in sums.iter_mut().zip(at) {
                let four = four(at.add(4 * (first + j)));
                for (sum, code) in sums.iter_mut().zip(code) {
                    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*code, four));
                }
            }
        }
        sums
    }
}

/// [`products`] for four tokens: two registers of codes and four activations at a time give eight products,
/// whose sums stay in registers. In assembly, because the compiler unrolls and reorders the additions until
/// half of the sums spill to memory, which takes more than twice as long.
///
/// # Safety
/// The machine has the features; activations exist for all of `codes` from vector `first` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products_4(codes: &[[__m256i; 2]], at: [*const i8; 4], first: usize) -> Sums<4> {
    let [mut a0, mut a1, mut b0, mut b1, mut c0, mut c1, mut d0, mut d1] = [_mm256_setzero_si256(); 8];
    let span = codes.as_ptr_range();
    if codes.is_empty() {
        return [[a0, a1], [b0, b1], [c0, c1], [d0, d1]];
    }
    // SAFETY: reads `codes` and four bytes of activations per token for each of its elements; writes registers only.
    unsafe {
        asm!(
            "2:",
            "vmovdqu {x0}, ymmword ptr [{code}]",
            "vmovdqu {x1}, ymmword ptr [{code} + 32]",
            "vpbroadcastd {y}, dword ptr [{qa} + {i}]",
            "vpbroadcastd {z}, dword ptr [{qb} + {i}]",
            "vpmaddubsw {p}, {x0}, {y}",
            "vpmaddubsw {y}, {x1}, {y}",
            "vpaddw {a0}, {a0}, {p}",
            "vpmaddubsw {p}, {x0}, {z}",
            "vpaddw {a1}, {a1}, {y}",
            "vpmaddubsw {z}, {x1}, {z}",
            "vpaddw {b0}, {b0}, {p}",
            "vpbroadcastd {y}, dword ptr [{qc} + {i}]",
            "vpaddw {b1}, {b1}, {z}",
            "vpbroadcastd {z}, dword ptr [{qd} + {i}]",
            "vpmaddubsw {p}, {x0}, {y}",
            "vpmaddubsw {y}, {x1}, {y}",
            "vpaddw {c0}, {c0}, {p}",
            "vpmaddubsw {p}, {x0}, {z}",
            "vpaddw {c1}, {c1}, {y}",
            "vpmaddubsw {z}, {x1}, {z}",
            "vpaddw {d0}, {d0}, {p}",
            "vpaddw {d1}, {d1}, {z}",
            "add {code}, 64",
            "add {i}, 4",
            "cmp {code}, {end}",
            "jne 2b",
            code = inout(reg) span.start => _,
            end = in(reg) span.end,
            i = inout(reg) 4 * first => _,
            qa = in(reg) at[0],
            qb = in(reg) at[1],
            qc = in(reg) at[2],
            qd = in(reg) at[3],
            a0 = inout(ymm_reg) a0,
            a1 = inout(ymm_reg) a1,
            b0 = inout(ymm_reg) b0,
            b1 = inout(ymm_reg) b1,
            c0 = inout(ymm_reg) c0,
            c1 = inout(ymm_reg) c1,
            d0 = inout(ymm_reg) d0,
            d1 = inout(ymm_reg) d1,
            x0 = out(ymm_reg) _,
            x1 = out(ymm_reg) _,
            y = out(ymm_reg) _,
            z = out(ymm_reg) _,
            p = out(ymm_reg) _,
            options(pure, readonly, nostack),
        );
    }
    [[a0, a1], [b0, b1], [c0, c1], [d0, d1]]
}

/// The dot products of a group in 32 bits.
#[inline(always)]
unsafe fn group_dots<const N: usize, const UNITS: usize, const T: usize>(
    codes: &Group,
    at: &[*const i8; T],
) -> Sums<T> {
    // These fit into 16 bits: a group of 2- or 3-bit codes, a unit of 4-bit codes, two vectors of 6-bit codes.
    let at_once = match N {
        1 | 2 => UNITS * VECTORS,
        4 => 2,
        _ => VECTORS,
    };
    // SAFETY: the caller guarantees the group's activations, and the features.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; T];
        for (n, codes) in codes[..UNITS * VECTORS].chunks_exact(at_once).enumerate() {
            let sums = products(codes, at, n * at_once);
            for (dots, sums) in dots.iter_mut().zip(sums) {
                for (dot, sum) in dots.iter_mut().zip(sums) {
                    *dot = _mm256_add_epi32(*dot, widen(sum));
                }
            }
        }
        dots
    }
}

/// A group times T tokens from `first` on.
#[inline(always)]
unsafe fn block<const N: usize, const UNITS: usize, const T: usize>(
    step: f32,
    (codes, lows, params): (&Group, &Group, [(__m256, __m256); 2]),
    x: &Activations,
    g: usize,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller guarantees T tokens, their activations and sums, and the features.
    unsafe {
        let (q, a, sum) = x.group(g);
        let mut at = [q.as_ptr(); T];
        for (n, at) in at.iter_mut().enumerate() {
            *at = at.add((first + n) * UNITS * UNIT_COLS);
        }
        let mut dots = group_dots::<N, UNITS, T>(codes, &at);
        if N == 5 {
            let lows = group_dots::<N, UNITS, T>(lows, &at);
            for (dots, lows) in dots.iter_mut().zip(lows) {
                for (dot, low) in dots.iter_mut().zip(lows) {
                    *dot = _mm256_add_epi32(_mm256_slli_epi32::<4>(*dot), low);
                }
            }
        }
        for ((n, dots), out) in (first..).zip(dots).zip(sums) {
            let (a, sum) = (*a.get_unchecked(n) * step, *sum.get_unchecked(n));
            for half in 0..2 {
                let out = out.as_mut_ptr().add(8 * half);
                let total = add_group(params[half], dots[half], a, sum, _mm256_loadu_ps(out));
                _mm256_storeu_ps(out, total);
            }
        }
    }
}
