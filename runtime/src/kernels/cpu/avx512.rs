//! Tile products with AVX-512 and VNNI: a vector of codes is a register, a row is a lane.
#![allow(unsafe_code)]

use super::attention::{Cell, Lanes};
use super::isa::{Isa, Kind};
use super::nested::{Activations, Tile};
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTOR, unit_bytes};
use std::arch::x86_64::*;

/// Plane bytes are asked for this far ahead of their use. The hardware prefetcher stops at every page; this does not.
const AHEAD: usize = 4096;

/// Where the bits come from: `a` where the mask is set, else `b`.
#[inline(always)]
fn select(mask: i32, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: inlined into functions that enable the feature, and nowhere else used.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(mask as i8), a, b) }
}

macro_rules! shift {
    ($x:expr, left $n:literal) => {
        _mm512_slli_epi16::<$n>($x)
    };
    ($x:expr, right $n:literal) => {
        _mm512_srli_epi16::<$n>($x)
    };
}

/// Two 2-bit planes as nibbles, of which byte vector `2f` is the low (f = 0, 1 of the first pair) ...: `high` gives the
/// upper two bits, `low` the lower. The first result has fields 0 and 2 in its low and high nibbles, the second 1 and 3.
#[inline(always)]
fn nibbles(high: __m512i, low: __m512i) -> (__m512i, __m512i) {
    // SAFETY: as in `select`.
    unsafe { (select(0x33, low, shift!(high, left 2)), select(0x33, shift!(low, right 2), high)) }
}

/// The codes of unit `u`, one byte each: see `quant::layout` for what lies where.
#[inline(always)]
unsafe fn unpack<const N: usize>(planes: &[*const u8; 5], u: usize, out: &mut [__m512i]) {
    // SAFETY: the caller vouches for unit `u` in the first N planes, and for the features.
    unsafe {
        let load = |p: usize, half: usize| {
            let at = planes[p].add(u * unit_bytes(p) + half * VECTOR);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
            _mm512_loadu_si512(at.cast())
        };
        let set = |bits: i32| _mm512_set1_epi8(bits as i8);
        let and = |x, bits| _mm512_and_si512(x, set(bits));
        let base = [load(0, 0), load(0, 1)];
        if N == 1 {
            for (half, x) in base.into_iter().enumerate() {
                out[half] = and(x, 3);
                out[half + 2] = and(shift!(x, right 2), 3);
                out[half + 4] = and(shift!(x, right 4), 3);
                out[half + 6] = and(shift!(x, right 6), 3);
            }
            return;
        }
        let first = load(1, 0);
        if N == 2 {
            // Nibbles `0ppb`: two bits of plane 0 above one of plane 1.
            let pairs = [
                select(0x66, shift!(base[0], left 1), first),
                select(0x66, shift!(base[1], left 1), shift!(first, right 1)),
                select(0x66, shift!(base[0], right 1), shift!(first, right 2)),
                select(0x66, shift!(base[1], right 1), shift!(first, right 3)),
            ];
            for (j, x) in pairs.into_iter().enumerate() {
                out[j] = and(x, 7);
                out[j + 4] = and(shift!(x, right 4), 7);
            }
            return;
        }
        let second = load(2, 0);
        // The two 1-bit planes as one of two bits, for the even vectors and for the odd ones.
        let odd = select(0xaa, first, shift!(second, right 1));
        let even = select(0xaa, shift!(first, left 1), second);
        let ((n0, n2), (n1, n3)) = (nibbles(base[0], even), nibbles(base[1], odd));
        let top = [n0, n1, n2, n3];
        if N == 3 {
            for (j, x) in top.into_iter().enumerate() {
                out[j] = and(x, 15);
                out[j + 4] = and(shift!(x, right 4), 15);
            }
            return;
        }
        let third = [load(3, 0), load(3, 1)];
        if N == 4 {
            for half in 0..2 {
                let (x, y, low) = (top[half], top[half + 2], third[half]);
                out[half] = and(select(3, low, shift!(x, left 2)), 63);
                out[half + 2] = and(select(3, shift!(low, right 2), shift!(y, left 2)), 63);
                out[half + 4] = and(select(3, shift!(low, right 4), shift!(x, right 2)), 63);
                out[half + 6] = and(select(3, shift!(low, right 6), shift!(y, right 2)), 63);
            }
            return;
        }
        let last = [load(4, 0), load(4, 1)];
        let ((n0, n2), (n1, n3)) = (nibbles(third[0], last[0]), nibbles(third[1], last[1]));
        for (j, (x, low)) in top.into_iter().zip([n0, n1, n2, n3]).enumerate() {
            out[j] = select(15, low, shift!(x, left 4));
            out[j + 4] = select(15, shift!(low, right 4), x);
        }
    }
}

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, tokens: &[u32], sums: &mut [[f32; TILE_ROWS]]) {
    assert!(isa.kind() == Kind::Avx512);
    // SAFETY: an `Isa` of this kind exists only where the features were detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations, tokens and sums.
    unsafe {
        match (t.level, t.group) {
            (1, 64) => times::<1, 2>(t, x, tokens, sums),
            (2, 64) => times::<2, 2>(t, x, tokens, sums),
            (3, 64) => times::<3, 2>(t, x, tokens, sums),
            (4, 64) => times::<4, 2>(t, x, tokens, sums),
            (_, 64) => times::<5, 2>(t, x, tokens, sums),
            (1, _) => times::<1, 1>(t, x, tokens, sums),
            (2, _) => times::<2, 1>(t, x, tokens, sums),
            (3, _) => times::<3, 1>(t, x, tokens, sums),
            (4, _) => times::<4, 1>(t, x, tokens, sums),
            (_, _) => times::<5, 1>(t, x, tokens, sums),
        }
    }
}

/// # Safety
/// The machine has the features; `t` has N planes and groups of `UNITS · 32`; `x` has its groups, and `sums` a row for
/// each of `tokens`, all of which are in `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
unsafe fn times<const N: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    tokens: &[u32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    let (middle, step) = (_mm512_set1_ps(t.middle), t.step);
    let mut codes = [_mm512_setzero_si512(); 16];
    for g in 0..t.zeros.len() / TILE_ROWS {
        // SAFETY: group g has its units in every plane of the level, and 16 scales and zero points.
        let (scale, centre) = unsafe {
            for u in 0..UNITS {
                unpack::<N>(&planes, g * UNITS + u, &mut codes[8 * u..8 * u + 8]);
            }
            let scales = t.scales.as_ptr().add(2 * g * TILE_ROWS);
            let zeros = t.zeros.as_ptr().add(g * TILE_ROWS);
            _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(AHEAD / 8).cast());
            _mm_prefetch::<_MM_HINT_T0>(zeros.wrapping_add(AHEAD / 16).cast());
            let zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.cast())));
            (_mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())), _mm512_sub_ps(middle, zeros))
        };
        let (q, a, sum) = x.group(g);
        for (&n, out) in tokens.iter().zip(&mut *sums) {
            let n = n as usize;
            // SAFETY: every token is in `x`, whose groups are `UNITS · 32` long.
            unsafe {
                let q = q.as_ptr().add(n * UNITS * UNIT_COLS);
                let four = |j: usize| _mm512_set1_epi32(q.add(4 * j).cast::<i32>().read_unaligned());
                // Four sums, so that one product need not wait for the last.
                let mut dots = [_mm512_setzero_si512(); 4];
                for j in 0..8 * UNITS {
                    dots[j % 4] = _mm512_dpbusd_epi32(dots[j % 4], codes[j], four(j));
                }
                let dot =
                    _mm512_add_epi32(_mm512_add_epi32(dots[0], dots[1]), _mm512_add_epi32(dots[2], dots[3]));
                let centre = _mm512_mul_ps(centre, _mm512_set1_ps(*sum.get_unchecked(n)));
                let a = _mm512_set1_ps(*a.get_unchecked(n) * step);
                let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), a, centre);
                let total = _mm512_fmadd_ps(scale, value, _mm512_loadu_ps(out.as_ptr()));
                _mm512_storeu_ps(out.as_mut_ptr(), total);
            }
        }
    }
}

impl Lanes for __m512 {
    const MANY: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load<T: Cell>(at: *const T) -> Self {
        // SAFETY: as above.
        unsafe {
            if T::HALF { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) } else { _mm512_loadu_ps(at.cast()) }
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(at, self) }
    }

    #[inline(always)]
    unsafe fn times_plus(self, x: f32, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, _mm512_set1_ps(x), sum) }
    }
}
