//! Tile products with AVX-512 and VNNI: a vector of codes is a register, a row is a lane.
//!
//! One token's codes go from the planes to the products without leaving the registers. For several tokens a stretch of
//! the tile is unpacked to the first-level cache, and tokens pass over it in blocks whose sums stay in registers: eight at
//! a time. The integer products are exact, and the float operations of a group ([`add_group`]) are the same in each.
//! Where there is AMX, calls of many tokens go another way: [`amx`].
#![allow(unsafe_code)]

mod amx;
mod unpack;

use super::attention::{Cell, Lanes};
use super::halves::Halves;
use super::isa::{Isa, Kind};
use super::nested::{Activations, SPARE_TOKENS, Tile};
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTORS};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use unpack::{AHEAD, raised, unpack};

pub(super) use amx::{Sums, available as amx_available};

/// Units unpacked at a time: 16 KB of codes, to leave room for the activations in the first-level cache.
const STRETCH: usize = 32;

/// Tokens of a block with VNNI: their sums and the totals of their rows are sixteen registers.
const BLOCK: usize = 8;

const _: () = assert!(BLOCK <= SPARE_TOKENS + 1);

pub(super) fn tile_times(isa: Isa, t: &Tile, x: &Activations, first: usize, sums: &mut [[f32; TILE_ROWS]]) {
    assert!(matches!(isa.kind(), Kind::Avx512 | Kind::Amx));
    // SAFETY: an `Isa` of these kinds exists only where the features were detected; the caller (`nested::times`) has
    // compared the sizes of matrix, activations and sums.
    unsafe {
        match (t.level, t.group) {
            (1, 64) => times::<1, 2>(t, x, first, sums),
            (2, 64) => times::<2, 2>(t, x, first, sums),
            (3, 64) => times::<3, 2>(t, x, first, sums),
            (4, 64) => times::<4, 2>(t, x, first, sums),
            (_, 64) => times::<5, 2>(t, x, first, sums),
            (1, _) => times::<1, 1>(t, x, first, sums),
            (2, _) => times::<2, 1>(t, x, first, sums),
            (3, _) => times::<3, 1>(t, x, first, sums),
            (4, _) => times::<4, 1>(t, x, first, sums),
            (_, _) => times::<5, 1>(t, x, first, sums),
        }
    }
}

/// Two tiles of one shape times tokens `first..first + tokens` in bfloat16.
pub(super) fn pair_times<const TOKENS: usize>(
    isa: Isa,
    t: [&Tile; 2],
    x: &Halves,
    tokens: (usize, usize),
    sums: &mut [Sums<TOKENS>; 2],
) {
    assert!(isa.kind() == Kind::Amx);
    let [a, b] = sums;
    let s = [a, b];
    // SAFETY: an `Isa` of this kind exists only where the features were detected; the caller (`nested::pair_times`) has
    // compared the shapes of matrices and activations.
    unsafe {
        match (t[0].level, t[0].group) {
            (1, 64) => amx::times::<1, 2, TOKENS>(t, x, tokens, s),
            (2, 64) => amx::times::<2, 2, TOKENS>(t, x, tokens, s),
            (3, 64) => amx::times::<3, 2, TOKENS>(t, x, tokens, s),
            (4, 64) => amx::times::<4, 2, TOKENS>(t, x, tokens, s),
            (_, 64) => amx::times::<5, 2, TOKENS>(t, x, tokens, s),
            (1, _) => amx::times::<1, 1, TOKENS>(t, x, tokens, s),
            (2, _) => amx::times::<2, 1, TOKENS>(t, x, tokens, s),
            (3, _) => amx::times::<3, 1, TOKENS>(t, x, tokens, s),
            (4, _) => amx::times::<4, 1, TOKENS>(t, x, tokens, s),
            (_, _) => amx::times::<5, 1, TOKENS>(t, x, tokens, s),
        }
    }
}

/// # Safety
/// The machine has the features; `t` has N planes and groups of `UNITS · 32`; `x`
/// has its groups, and the tokens `first..`, one for each of `sums`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
unsafe fn times<const N: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match sums {
            [sums] => one::<N, UNITS>(t, x, first, sums),
            _ => many::<N, UNITS>(t, x, first, sums),
        }
    }
}

/// What turns a group's integers into floats, for each row: the scale, and what every code is to be raised by. Both in
/// steps of the level's codes; a step is a power of two, so nothing is rounded.
#[derive(Clone, Copy)]
struct Params {
    scale: __m512,
    centre: __m512,
}

impl Params {
    #[inline(always)]
    unsafe fn load(t: &Tile, g: usize) -> Params {
        // SAFETY: the caller vouches for group g and the features; a prefetch of any address is allowed.
        unsafe {
            let scales = t.scales.as_ptr().add(2 * g * TILE_ROWS);
            let zeros = t.zeros.as_ptr().add(g * TILE_ROWS);
            _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(AHEAD / 8).cast());
            _mm_prefetch::<_MM_HINT_T0>(zeros.wrapping_add(AHEAD / 16).cast());
            let zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.cast())));
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let centre = _mm512_sub_ps(_mm512_set1_ps(t.middle), zeros);
            Params {
                scale: _mm512_mul_ps(scale, _mm512_set1_ps(t.step)),
                centre: _mm512_mul_ps(centre, _mm512_set1_ps(1.0 / t.step)),
            }
        }
    }
}

/// Adds a group's products with one token, whose scale is `a` and whose sum is `sum`, to the totals of its rows.
#[inline(always)]
fn add_group(p: Params, dot: __m512i, a: f32, sum: f32, total: __m512) -> __m512 {
    // SAFETY: inlined into functions that enable the features, and nowhere else used.
    unsafe {
        let centre = _mm512_mul_ps(p.centre, _mm512_set1_ps(sum));
        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(a), centre);
        _mm512_fmadd_ps(p.scale, value, total)
    }
}

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(q: *const i8) -> __m512i {
    // SAFETY: the caller vouches for 4 values of `q`, and for the features.
    unsafe { _mm512_set1_epi32(q.cast::<i32>().read_unaligned()) }
}

/// One token.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn one<const N: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    n: usize,
    sums: &mut [f32; TILE_ROWS],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    // SAFETY: the caller's promise: group g has its units in every plane of the level, its 16 scales and zero points,
    // and its activations.
    unsafe {
        let mut total = _mm512_setzero_ps();
        for g in 0..t.zeros.len() / TILE_ROWS {
            let (q, a, sum) = x.group(g);
            let q = q.as_ptr().add(n * UNITS * UNIT_COLS);
            // One sum for each field, which are raised by different powers of two.
            let mut dots = [_mm512_setzero_si512(); 4];
            for u in 0..UNITS {
                let codes = unpack::<N, true>(&planes, g * UNITS + u);
                for (j, codes) in codes.into_iter().enumerate() {
                    dots[j / 2] = _mm512_dpbusd_epi32(dots[j / 2], codes, four(q.add(u * UNIT_COLS + 4 * j)));
                }
            }
            let dot = lower::<N>(dots);
            total = add_group(Params::load(t, g), dot, *a.get_unchecked(n), *sum.get_unchecked(n), total);
        }
        _mm512_storeu_ps(sums.as_mut_ptr(), total);
    }
}

/// The sum of the fields' products, brought down from where they were raised to: exactly, being whole multiples.
#[inline(always)]
fn lower<const N: usize>(dots: [__m512i; 4]) -> __m512i {
    // SAFETY: as in `add_group`.
    unsafe {
        let [a, b, c, d] = dots;
        let sum = |x, y| _mm512_add_epi32(x, y);
        let down = |x, f| {
            let bits = const { [raised::<N>(0), raised::<N>(1), raised::<N>(2), raised::<N>(3)] }[f];
            if bits == 0 { x } else { _mm512_sra_epi32(x, _mm_cvtsi32_si128(bits as i32)) }
        };
        if N >= 3 {
            return sum(sum(a, b), down(sum(c, d), 2));
        }
        sum(sum(down(a, 0), down(b, 1)), sum(down(c, 2), down(d, 3)))
    }
}

/// A stretch of a tile, unpacked.
struct Stretch {
    codes: [MaybeUninit<[__m512i; VECTORS]>; STRETCH],
    params: [MaybeUninit<Params>; STRETCH],
    groups: usize,
}

/// Several tokens.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn many<const N: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    let groups = t.zeros.len() / TILE_ROWS;
    let mut s = Stretch {
        codes: [const { MaybeUninit::uninit() }; STRETCH],
        params: [const { MaybeUninit::uninit() }; STRETCH],
        groups: 0,
    };
    for from in (0..groups).step_by(STRETCH / UNITS) {
        s.groups = (STRETCH / UNITS).min(groups - from);
        // SAFETY: the caller's promise; a stretch is complete before it is used, and tokens beyond the last are spare.
        unsafe {
            for g in 0..s.groups {
                for u in 0..UNITS {
                    s.codes[g * UNITS + u].write(unpack::<N, false>(&planes, (from + g) * UNITS + u));
                }
                s.params[g].write(Params::load(t, from + g));
            }
            let (mut n, mut rest) = (first, &mut *sums);
            while !rest.is_empty() {
                let block = rest.len().min(BLOCK);
                let (now, later) = rest.split_at_mut(block);
                match block {
                    1 => tokens::<UNITS, 1>(&s, x, from, n, now),
                    2..=4 => tokens::<UNITS, 4>(&s, x, from, n, now),
                    _ => tokens::<UNITS, BLOCK>(&s, x, from, n, now),
                }
                (n, rest) = (n + block, later);
            }
        }
    }
}

/// The totals so far; zeros for the tokens beyond.
#[inline(always)]
unsafe fn totals<const T: usize>(sums: &[[f32; TILE_ROWS]]) -> [__m512; T] {
    // SAFETY: the caller vouches for the features.
    unsafe {
        let mut totals = [_mm512_setzero_ps(); T];
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total = _mm512_loadu_ps(sums.as_ptr());
        }
        totals
    }
}

#[inline(always)]
unsafe fn keep<const T: usize>(totals: [__m512; T], sums: &mut [[f32; TILE_ROWS]]) {
    for (total, sums) in totals.into_iter().zip(sums) {
        // SAFETY: the caller vouches for the features.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) }
    }
}

/// A stretch, whose first group is `from`, times up to T tokens from `first` on.
///
/// # Safety
/// The machine has the features; the stretch is filled, `x` has its groups, the tokens, and T − 1 beyond the last.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
unsafe fn tokens<const UNITS: usize, const T: usize>(
    s: &Stretch,
    x: &Activations,
    from: usize,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut totals = totals::<T>(sums);
        for g in 0..s.groups {
            let (q, a, sum) = x.group(from + g);
            let q = q.as_ptr().add(first * UNITS * UNIT_COLS);
            let codes = s.codes.as_ptr().add(g * UNITS).cast::<__m512i>();
            let mut dots = [_mm512_setzero_si512(); T];
            for j in 0..UNITS * VECTORS {
                let codes = _mm512_load_si512(codes.add(j));
                for (n, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, codes, four(q.add(n * UNITS * UNIT_COLS + 4 * j)));
                }
            }
            let p = s.params.get_unchecked(g).assume_init();
            for (n, (total, dot)) in totals.iter_mut().zip(dots).enumerate() {
                let (a, sum) = (*a.get_unchecked(first + n), *sum.get_unchecked(first + n));
                *total = add_group(p, dot, a, sum, *total);
            }
        }
        keep(totals, sums);
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

    #[inline(always)]
    fn ask<T>(at: *const T) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
