//! Tile products with AVX2: half a tile (8 rows) is one register of lanes. `maddubs` adds pairs of products
//! in 16 bits. With codes of up to 4 bits, the eight products of a unit fit into 16 bits; with 6-bit codes,
//! two do. 8-bit codes are multiplied as two nibbles. Integer sums are exact in any grouping, and the float
//! operations of a group ([`add_group`]) are the same for one token and for many.
#![allow(unsafe_code)]

mod many;
mod unpack;

use super::activations::Activations;
use super::isa::{Isa, Kind};
use super::lanes::{Cell, Lanes};
use super::tiles::Tile;
use crate::quant::{
    GroupParams, MXFP4_LEAST, NARROW_BASE, NARROW_STEP, NARROW_ZERO, SHARED, TILE_ROWS, UNIT_COLS, VECTOR,
    unit_bytes,
};
use many::many;
use std::arch::x86_64::*;
use unpack::{Entries, Half, codes};

/// Plane bytes are prefetched this far ahead of their use.
const AHEAD: usize = 2048;

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(q: *const i8) -> __m256i {
    // SAFETY: the caller guarantees 4 values of `q`, and the features.
    unsafe { _mm256_set1_epi32(q.cast::<i32>().read_unaligned()) }
}

/// Pairs of 16-bit sums as 32-bit sums.
#[inline(always)]
fn widen(x: __m256i) -> __m256i {
    // SAFETY: as in `select`.
    unsafe { _mm256_madd_epi16(x, _mm256_set1_epi16(1)) }
}

/// `Σ codes · q` of a unit for 8 rows, in 16 bits: for codes of up to 4 bits.
#[inline(always)]
unsafe fn narrow_dots(codes: &Half, q: *const i8) -> __m256i {
    // SAFETY: the caller guarantees 32 values of `q`, and the features.
    unsafe {
        let product = |j: usize| _mm256_maddubs_epi16(codes[j], four(q.add(4 * j)));
        let pair = |j: usize| _mm256_add_epi16(product(j), product(j + 1));
        _mm256_add_epi16(_mm256_add_epi16(pair(0), pair(2)), _mm256_add_epi16(pair(4), pair(6)))
    }
}

/// The same in 32 bits, for codes of 6 bits.
#[inline(always)]
unsafe fn wide_dots(codes: &Half, q: *const i8) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let product = |j: usize| _mm256_maddubs_epi16(codes[j], four(q.add(4 * j)));
        let pair = |j: usize| widen(_mm256_add_epi16(product(j), product(j + 1)));
        _mm256_add_epi32(_mm256_add_epi32(pair(0), pair(2)), _mm256_add_epi32(pair(4), pair(6)))
    }
}

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    assert!(isa.kind() == Kind::Avx2);
    // SAFETY: an `Isa` of this kind exists only where the features were detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations and sums.
    unsafe {
        match (t.level, t.group, t.table) {
            (1, _, Some((_, true))) => times::<1, 4, 1>(t, x, first, sums),
            (2, _, Some((_, true))) => times::<2, 4, 1>(t, x, first, sums),
            (_, _, Some((_, true))) => times::<3, 4, 1>(t, x, first, sums),
            (1, _, Some(_)) => times::<1, 5, 1>(t, x, first, sums),
            (2, _, Some(_)) => times::<2, 5, 1>(t, x, first, sums),
            (_, _, Some(_)) => times::<3, 5, 1>(t, x, first, sums),
            (1, 64, _) => times::<1, 1, 2>(t, x, first, sums),
            (2, 64, _) => times::<2, 2, 2>(t, x, first, sums),
            (3, 64, _) => times::<3, 3, 2>(t, x, first, sums),
            (4, 64, _) => times::<4, 4, 2>(t, x, first, sums),
            (_, 64, _) => times::<5, 5, 2>(t, x, first, sums),
            (1, _, _) => times::<1, 1, 1>(t, x, first, sums),
            (2, _, _) => times::<2, 2, 1>(t, x, first, sums),
            (3, _, _) => times::<3, 3, 1>(t, x, first, sums),
            (4, _, _) => times::<4, 4, 1>(t, x, first, sums),
            (_, _, _) => times::<5, 5, 1>(t, x, first, sums),
        }
    }
}

/// # Safety
/// The machine has the features. `t` has N planes and groups of `UNITS · 32`. If K is not N, it has a table,
/// and K planes would have the bits of an entry. `x` has its groups, and the tokens `first..`, one for each
/// of `sums`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn times<const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        match sums {
            [sums] => one::<N, K, UNITS>(t, x, first, sums),
            _ => many::<N, K, UNITS>(t, x, first, sums),
        }
    }
}

/// Scales of 8 rows, and the offsets that are added to their codes.
#[inline(always)]
unsafe fn params(t: &Tile, g: usize, rows: usize) -> (__m256, __m256) {
    // SAFETY: the caller guarantees group g and the features.
    unsafe {
        let (scale, zeros) = match t.params {
            GroupParams::Wide => {
                let zeros = _mm_loadl_epi64(t.zeros.as_ptr().add(g * TILE_ROWS + rows).cast());
                let scales = _mm_loadu_si128(t.scales.as_ptr().add(2 * (g * TILE_ROWS + rows)).cast());
                (_mm256_cvtph_ps(scales), _mm256_cvtepu8_epi32(zeros))
            }
            GroupParams::Mxfp4 => {
                let scales = _mm_loadl_epi64(t.scales.as_ptr().add(g * TILE_ROWS + rows).cast());
                let bits = _mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(scales));
                let bits = _mm256_max_epu32(bits, _mm256_set1_epi32(MXFP4_LEAST as i32));
                (_mm256_castsi256_ps(bits), _mm256_set1_epi32(t.params.no_zero().into()))
            }
            GroupParams::Iq4Nl => {
                let scales = _mm_loadu_si128(t.scales.as_ptr().add(2 * (g * TILE_ROWS + rows)).cast());
                (_mm256_cvtph_ps(scales), _mm256_set1_epi32(t.params.no_zero().into()))
            }
            GroupParams::Iq4Xs => {
                let own = _mm_loadl_epi64(t.scales.as_ptr().add(g * TILE_ROWS + rows).cast());
                let shared = t.zeros.as_ptr().add(2 * (g / SHARED * TILE_ROWS + rows));
                let shared = _mm256_cvtph_ps(_mm_loadu_si128(shared.cast()));
                let own = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(own));
                (_mm256_mul_ps(shared, own), _mm256_set1_epi32(t.params.no_zero().into()))
            }
            GroupParams::Narrow => {
                let pairs = _mm_loadl_epi64(t.zeros.as_ptr().add(g * TILE_ROWS / 2).cast());
                let nibbles = _mm_srl_epi16(pairs, _mm_cvtsi32_si128(rows as i32 / 2));
                let steps = _mm256_cvtepu8_epi32(_mm_and_si128(nibbles, _mm_set1_epi8(15)));
                let steps = _mm256_mullo_epi16(steps, _mm256_set1_epi32(NARROW_STEP.into()));
                let scales = _mm_loadl_epi64(t.scales.as_ptr().add(g * TILE_ROWS + rows).cast());
                let scales = _mm256_slli_epi32::<19>(_mm256_cvtepu8_epi32(scales));
                (
                    _mm256_castsi256_ps(_mm256_add_epi32(scales, _mm256_set1_epi32(NARROW_BASE as i32))),
                    _mm256_add_epi32(steps, _mm256_set1_epi32(NARROW_ZERO.into())),
                )
            }
        };
        (scale, _mm256_sub_ps(_mm256_set1_ps(t.middle), _mm256_cvtepi32_ps(zeros)))
    }
}

/// Adds a group to the sums of 8 rows.
#[inline(always)]
fn add_group((scale, centre): (__m256, __m256), dot: __m256i, a: f32, sum: f32, out: __m256) -> __m256 {
    // SAFETY: as in `select`.
    unsafe {
        let centre = _mm256_mul_ps(centre, _mm256_set1_ps(sum));
        let value = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(a), centre);
        _mm256_fmadd_ps(scale, value, out)
    }
}

/// One token: codes go from the planes to the products without leaving the registers.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn one<const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    n: usize,
    sums: &mut [f32; TILE_ROWS],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    // SAFETY: as the caller guarantees, group g has its units in every plane of the level, its 16 scales and
    // zero points, and its activations.
    unsafe {
        let mut out = [_mm256_setzero_ps(); 2];
        let table = Entries::of(t);
        for g in 0..t.groups {
            let (q, a, sum) = x.group(g);
            let q = q.as_ptr().add(n * UNITS * UNIT_COLS);
            let (a, sum) = (*a.get_unchecked(n) * t.step, *sum.get_unchecked(n));
            prefetch::<N, UNITS>(t, &planes, g);
            for (half, out) in out.iter_mut().enumerate() {
                let mut dot = _mm256_setzero_si256();
                let mut narrow = _mm256_setzero_si256();
                for u in 0..UNITS {
                    let q = q.add(u * UNIT_COLS);
                    let (codes, low) = codes::<N, K>(&planes, &table, g * UNITS + u, 8 * half);
                    if K <= 2 {
                        // A whole group of 2- or 3-bit codes fits into 16 bits.
                        narrow = _mm256_add_epi16(narrow, narrow_dots(&codes, q));
                    } else if K == 4 {
                        dot = _mm256_add_epi32(dot, wide_dots(&codes, q));
                    } else {
                        let mut part = widen(narrow_dots(&codes, q));
                        if K == 5 {
                            part = _mm256_slli_epi32::<4>(part);
                            part = _mm256_add_epi32(part, widen(narrow_dots(&low, q)));
                        }
                        dot = _mm256_add_epi32(dot, part);
                    }
                }
                if K <= 2 {
                    dot = widen(narrow);
                }
                *out = add_group(params(t, g, 8 * half), dot, a, sum, *out);
            }
        }
        _mm256_storeu_ps(sums.as_mut_ptr(), out[0]);
        _mm256_storeu_ps(sums.as_mut_ptr().add(8), out[1]);
    }
}

/// Prefetches the data of later groups. The hardware prefetcher tracks too few streams, and stops at pages.
#[inline(always)]
unsafe fn prefetch<const N: usize, const UNITS: usize>(t: &Tile, planes: &[*const u8; 5], g: usize) {
    // SAFETY: a prefetch of any address is allowed.
    unsafe {
        for (p, plane) in planes.iter().enumerate().take(N) {
            for line in 0..UNITS * unit_bytes(p) / VECTOR {
                let at = plane.wrapping_add(g * UNITS * unit_bytes(p) + line * VECTOR + AHEAD);
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
            }
        }
        let (scales, zeros) = (t.scales.as_ptr(), t.zeros.as_ptr());
        _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(g * t.params.scale_bytes() + AHEAD / 8).cast());
        _mm_prefetch::<_MM_HINT_T0>(zeros.wrapping_add(g * t.params.zero_bytes() + AHEAD / 16).cast());
    }
}

/// Sixteen floats in two registers.
#[derive(Clone, Copy)]
pub(super) struct Lanes16(__m256, __m256);

impl Lanes for Lanes16 {
    const MANY: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller guarantees it, here and below.
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
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe { Lanes16(_mm256_fmadd_ps(self.0, x.0, sum.0), _mm256_fmadd_ps(self.1, x.1, sum.1)) }
    }
}
