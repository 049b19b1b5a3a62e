//! Tile products with AVX2: half a tile (8 rows) is one register of lanes.
//!
//! `maddubs` adds pairs of products in 16 bits. Codes of up to 4 bits leave room to add the eight of a unit before they
//! are widened, 6 bits for two; 8-bit codes are multiplied as two nibbles.
#![allow(unsafe_code)]

use super::attention::{Cell, Lanes};
use super::isa::{Isa, Kind};
use super::nested::{Activations, Tile};
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTOR, VECTORS, unit_bytes};
use std::arch::x86_64::*;

/// The codes of half a unit's rows, one register a vector.
type Half = [__m256i; VECTORS];

#[inline(always)]
fn select(mask: i32, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: inlined into functions that enable the feature, and nowhere else used.
    unsafe {
        let mask = _mm256_set1_epi8(mask as i8);
        _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b))
    }
}

macro_rules! shift {
    ($x:expr, left $n:literal) => {
        _mm256_slli_epi16::<$n>($x)
    };
    ($x:expr, right $n:literal) => {
        _mm256_srli_epi16::<$n>($x)
    };
}

#[inline(always)]
fn and(x: __m256i, bits: i32) -> __m256i {
    // SAFETY: as in `select`.
    unsafe { _mm256_and_si256(x, _mm256_set1_epi8(bits as i8)) }
}

/// Two 2-bit planes as nibbles: fields 0 and 2 of `high` over those of `low`, and fields 1 and 3.
#[inline(always)]
fn nibbles(high: __m256i, low: __m256i) -> (__m256i, __m256i) {
    // SAFETY: as in `select`.
    unsafe { (select(0x33, low, shift!(high, left 2)), select(0x33, shift!(low, right 2), high)) }
}

/// Low and high nibbles of four registers, as the eight vectors.
#[inline(always)]
fn spread(x: [__m256i; 4], bits: i32) -> Half {
    let mut out = [x[0]; VECTORS];
    for (j, x) in x.into_iter().enumerate() {
        // SAFETY: as in `select`.
        (out[j], out[j + 4]) = (and(x, bits), and(unsafe { shift!(x, right 4) }, bits));
    }
    out
}

/// The codes of 8 rows of unit `u`: whole, or at 8 bits the upper nibbles and the lower.
#[inline(always)]
unsafe fn unpack<const N: usize>(planes: &[*const u8; 5], u: usize, rows: usize) -> (Half, Half) {
    // SAFETY: the caller vouches for unit `u` in the first N planes, and for the features.
    unsafe {
        let load = |p: usize, half: usize| {
            let at = planes[p].add(u * unit_bytes(p) + half * VECTOR + 4 * rows);
            _mm256_loadu_si256(at.cast())
        };
        let none = [_mm256_setzero_si256(); VECTORS];
        let base = [load(0, 0), load(0, 1)];
        if N == 1 {
            let mut out = none;
            for (half, x) in base.into_iter().enumerate() {
                out[half] = and(x, 3);
                out[half + 2] = and(shift!(x, right 2), 3);
                out[half + 4] = and(shift!(x, right 4), 3);
                out[half + 6] = and(shift!(x, right 6), 3);
            }
            return (out, none);
        }
        let first = load(1, 0);
        if N == 2 {
            let pairs = [
                select(0x66, shift!(base[0], left 1), first),
                select(0x66, shift!(base[1], left 1), shift!(first, right 1)),
                select(0x66, shift!(base[0], right 1), shift!(first, right 2)),
                select(0x66, shift!(base[1], right 1), shift!(first, right 3)),
            ];
            return (spread(pairs, 7), none);
        }
        let second = load(2, 0);
        let odd = select(0xaa, first, shift!(second, right 1));
        let even = select(0xaa, shift!(first, left 1), second);
        let ((n0, n2), (n1, n3)) = (nibbles(base[0], even), nibbles(base[1], odd));
        let top = spread([n0, n1, n2, n3], 15);
        if N == 3 {
            return (top, none);
        }
        let third = [load(3, 0), load(3, 1)];
        if N == 4 {
            let mut out = none;
            for (half, low) in third.into_iter().enumerate() {
                let lows = [low, shift!(low, right 2), shift!(low, right 4), shift!(low, right 6)];
                for (f, low) in lows.into_iter().enumerate() {
                    let j = half + 2 * f;
                    out[j] = _mm256_or_si256(shift!(top[j], left 2), and(low, 3));
                }
            }
            return (out, none);
        }
        let last = [load(4, 0), load(4, 1)];
        let ((n0, n2), (n1, n3)) = (nibbles(third[0], last[0]), nibbles(third[1], last[1]));
        (top, spread([n0, n1, n2, n3], 15))
    }
}

/// `Σ codes · q` of a unit for 8 rows.
#[inline(always)]
unsafe fn dots<const WIDE: bool>(codes: &Half, q: *const i8) -> __m256i {
    // SAFETY: the caller vouches for 32 values of `q`, and for the features.
    unsafe {
        let product = |j: usize| {
            let four = _mm256_set1_epi32(q.add(4 * j).cast::<i32>().read_unaligned());
            _mm256_maddubs_epi16(codes[j], four)
        };
        let pair = |j: usize| _mm256_add_epi16(product(j), product(j + 1));
        let widen = |x| _mm256_madd_epi16(x, _mm256_set1_epi16(1));
        if WIDE {
            let low = _mm256_add_epi32(widen(pair(0)), widen(pair(2)));
            _mm256_add_epi32(low, _mm256_add_epi32(widen(pair(4)), widen(pair(6))))
        } else {
            let (low, high) = (_mm256_add_epi16(pair(0), pair(2)), _mm256_add_epi16(pair(4), pair(6)));
            widen(_mm256_add_epi16(low, high))
        }
    }
}

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, tokens: &[u32], sums: &mut [[f32; TILE_ROWS]]) {
    assert!(isa.kind() == Kind::Avx2);
    // SAFETY: an `Isa` of this kind exists only where the features were detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations, tokens and sums.
    unsafe {
        match t.level {
            1 => times::<1>(t, x, tokens, sums),
            2 => times::<2>(t, x, tokens, sums),
            3 => times::<3>(t, x, tokens, sums),
            4 => times::<4>(t, x, tokens, sums),
            _ => times::<5>(t, x, tokens, sums),
        }
    }
}

/// # Safety
/// The machine has the features; `t` has N planes; `x` has its groups, and `sums` a row for each of `tokens`, all of
/// which are in `x`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn times<const N: usize>(t: &Tile, x: &Activations, tokens: &[u32], sums: &mut [[f32; TILE_ROWS]]) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    let units = t.group / UNIT_COLS;
    for g in 0..t.zeros.len() / TILE_ROWS {
        let (q, a, sum) = x.group(g);
        for rows in [0, 8] {
            // SAFETY: group g has its units in every plane of the level, and 16 scales and zero points.
            let (codes, scale, centre) = unsafe {
                let first = unpack::<N>(&planes, g * units, rows);
                let second = if units == 2 { unpack::<N>(&planes, g * units + 1, rows) } else { first };
                let zeros = _mm_loadl_epi64(t.zeros.as_ptr().add(g * TILE_ROWS + rows).cast());
                let zeros = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zeros));
                let scales = _mm_loadu_si128(t.scales.as_ptr().add(2 * (g * TILE_ROWS + rows)).cast());
                ([first, second], _mm256_cvtph_ps(scales), _mm256_sub_ps(_mm256_set1_ps(t.middle), zeros))
            };
            for (&n, out) in tokens.iter().zip(&mut *sums) {
                let n = n as usize;
                // SAFETY: every token is in `x`, whose groups are `units · 32` long.
                unsafe {
                    let mut dot = _mm256_setzero_si256();
                    for (u, (codes, low)) in codes[..units].iter().enumerate() {
                        let q = q.as_ptr().add(n * t.group + u * UNIT_COLS);
                        let mut part = if N == 4 { dots::<true>(codes, q) } else { dots::<false>(codes, q) };
                        if N == 5 {
                            part = _mm256_add_epi32(_mm256_slli_epi32::<4>(part), dots::<false>(low, q));
                        }
                        dot = _mm256_add_epi32(dot, part);
                    }
                    let centre = _mm256_mul_ps(centre, _mm256_set1_ps(*sum.get_unchecked(n)));
                    let a = _mm256_set1_ps(*a.get_unchecked(n) * t.step);
                    let value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), a, centre);
                    let out = out[rows..rows + 8].as_mut_ptr();
                    _mm256_storeu_ps(out, _mm256_fmadd_ps(scale, value, _mm256_loadu_ps(out)));
                }
            }
        }
    }
}

/// Sixteen floats in two registers.
#[derive(Clone, Copy)]
pub(super) struct Lanes16(__m256, __m256);

impl Lanes for Lanes16 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { Lanes16(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load<T: Cell>(at: *const T) -> Self {
        // SAFETY: as above.
        unsafe {
            if T::HALF {
                let at = at.cast::<__m128i>();
                Lanes16(_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))))
            } else {
                Lanes16(_mm256_loadu_ps(at.cast()), _mm256_loadu_ps(at.cast::<f32>().add(8)))
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(at, self.0);
            _mm256_storeu_ps(at.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn times_plus(self, x: f32, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_set1_ps(x);
            Lanes16(_mm256_fmadd_ps(self.0, x, sum.0), _mm256_fmadd_ps(self.1, x, sum.1))
        }
    }
}
