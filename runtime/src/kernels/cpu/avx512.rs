//! Tile products with AVX-512 and VNNI: a vector of codes is a register, a row is a lane.
//!
//! One token's codes go from the planes to the products without leaving the registers. For several tokens, a
//! stretch of two tiles is unpacked to the L1 cache and multiplied with blocks of eight tokens, whose sums
//! stay in registers. The integer products are exact, and both ways use the same float operations per group
//! ([`add_group`]). With AMX, calls of many tokens use [`amx`] instead.
#![allow(unsafe_code)]

mod amx;
mod unpack;

use super::activations::Activations;
use super::halves::Halves;
use super::isa::{Isa, Kind};
use super::lanes::{Cell, Lanes};
use super::lines::Later;
use super::tiles::{Sums, Tile};
use crate::quant::{
    GroupParams, MXFP4_LEAST, NARROW_BASE, NARROW_STEP, NARROW_ZERO, SHARED, TILE_ROWS, UNIT_COLS, VECTOR,
    VECTORS, unit_bytes,
};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use unpack::{AHEAD, LOWERED, RAISED, codes, entries, raised};

/// Units unpacked at a time: 8 KB of codes of each of two tiles, so that the activations also fit into the L1 cache.
const STRETCH: usize = 16;

/// An upper bound for the cache lines of a stretch of a tile, in all planes, with its scales and zero points.
const STRETCH_LINES: usize = STRETCH * (8 * VECTOR + 3 * TILE_ROWS) / 64 + 7;

/// The same for two tiles.
type Next = Later<{ 2 * STRETCH_LINES }>;

/// The K of kernels for table codes, whose entries need the bits of this many planes. For other codes K is N.
const LOOKED_UP: usize = 5;

/// The same with an instruction that ignores a code's upper bits (VBMI), if the machine has it.
const PERMUTED: usize = 6;

/// Tokens per block with VNNI: their sums for two tiles take sixteen registers.
const BLOCK: usize = 8;

/// Tiles of one shape times tokens `first..`, one for each of their sums.
pub(super) fn tile_times<const TILES: usize>(
    isa: Isa,
    t: [&Tile; TILES],
    x: &Activations,
    first: usize,
    sums: [&mut [[f32; TILE_ROWS]]; TILES],
) {
    assert!(matches!(isa.kind(), Kind::Avx512 | Kind::Amx));
    // SAFETY: an `Isa` of these kinds exists only where the features were detected; the caller (`nested::times`) has
    // compared the sizes of matrices, activations and sums.
    unsafe {
        // The standard library detects the feature once and caches the result.
        let permutes = is_x86_feature_detected!("avx512vbmi");
        match (t[0].level, t[0].group, t[0].table) {
            (1, _, Some(_)) if permutes => times::<1, PERMUTED, 1, TILES>(t, x, first, sums),
            (2, _, Some(_)) if permutes => times::<2, PERMUTED, 1, TILES>(t, x, first, sums),
            (_, _, Some(_)) if permutes => times::<3, PERMUTED, 1, TILES>(t, x, first, sums),
            (1, _, Some(_)) => times::<1, LOOKED_UP, 1, TILES>(t, x, first, sums),
            (2, _, Some(_)) => times::<2, LOOKED_UP, 1, TILES>(t, x, first, sums),
            (_, _, Some(_)) => times::<3, LOOKED_UP, 1, TILES>(t, x, first, sums),
            (1, 64, _) => times::<1, 1, 2, TILES>(t, x, first, sums),
            (2, 64, _) => times::<2, 2, 2, TILES>(t, x, first, sums),
            (3, 64, _) => times::<3, 3, 2, TILES>(t, x, first, sums),
            (4, 64, _) => times::<4, 4, 2, TILES>(t, x, first, sums),
            (_, 64, _) => times::<5, 5, 2, TILES>(t, x, first, sums),
            (1, _, _) => times::<1, 1, 1, TILES>(t, x, first, sums),
            (2, _, _) => times::<2, 2, 1, TILES>(t, x, first, sums),
            (3, _, _) => times::<3, 3, 1, TILES>(t, x, first, sums),
            (4, _, _) => times::<4, 4, 1, TILES>(t, x, first, sums),
            (_, _, _) => times::<5, 5, 1, TILES>(t, x, first, sums),
        }
    }
}

/// Two tiles of one shape times tokens `first..first + tokens` in bfloat16.
pub(super) fn pair_times(isa: Isa, t: [&Tile; 2], x: &Halves, tokens: (usize, usize), sums: &mut [Sums; 2]) {
    assert!(isa.kind() == Kind::Amx);
    let [a, b] = sums;
    let s = [a, b];
    // SAFETY: an `Isa` of this kind exists only where the features were detected; the caller (`nested::pair_times`) has
    // compared the shapes of matrices and activations.
    unsafe {
        match (t[0].level, t[0].group, t[0].table) {
            (1, _, Some(_)) => amx::times::<1, LOOKED_UP, 1>(t, x, tokens, s),
            (2, _, Some(_)) => amx::times::<2, LOOKED_UP, 1>(t, x, tokens, s),
            (_, _, Some(_)) => amx::times::<3, LOOKED_UP, 1>(t, x, tokens, s),
            (1, 64, _) => amx::times::<1, 1, 2>(t, x, tokens, s),
            (2, 64, _) => amx::times::<2, 2, 2>(t, x, tokens, s),
            (3, 64, _) => amx::times::<3, 3, 2>(t, x, tokens, s),
            (4, 64, _) => amx::times::<4, 4, 2>(t, x, tokens, s),
            (_, 64, _) => amx::times::<5, 5, 2>(t, x, tokens, s),
            (1, _, _) => amx::times::<1, 1, 1>(t, x, tokens, s),
            (2, _, _) => amx::times::<2, 2, 1>(t, x, tokens, s),
            (3, _, _) => amx::times::<3, 3, 1>(t, x, tokens, s),
            (4, _, _) => amx::times::<4, 4, 1>(t, x, tokens, s),
            (_, _, _) => amx::times::<5, 5, 1>(t, x, tokens, s),
        }
    }
}

/// # Safety
/// The machine has the features. All of `t` have N planes and groups of `UNITS · 32`, and a table if K is not
/// N. `x` has their groups, and the tokens `first..`, one for each of every tile's `sums`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
unsafe fn times<const N: usize, const K: usize, const UNITS: usize, const TILES: usize>(
    t: [&Tile; TILES],
    x: &Activations,
    first: usize,
    mut sums: [&mut [[f32; TILE_ROWS]]; TILES],
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        if sums[0].len() > 1 {
            return many::<N, K, UNITS, TILES>(t, x, first, sums);
        }
        for (t, sums) in t.iter().zip(&mut sums) {
            sums.iter_mut().for_each(|sums| one::<N, K, UNITS>(t, x, first, sums));
        }
    }
}

/// Converts a group's integers to floats, for each row: the scale, and the offset that is added to every
/// code. Both are in steps of the level's codes; a step is a power of two, so nothing is rounded.
#[derive(Clone, Copy)]
struct Params {
    scale: __m512,
    centre: __m512,
}

impl Params {
    /// ASK as with [`codes`].
    #[inline(always)]
    unsafe fn load<const ASK: bool>(t: &Tile, g: usize) -> Params {
        // SAFETY: the caller guarantees group g and the features; a prefetch of any address is allowed.
        unsafe {
            let (scale, zeros) = scales_and_zeros::<ASK>(t, g);
            let centre = _mm512_sub_ps(_mm512_set1_ps(t.middle), zeros);
            Params {
                scale: _mm512_mul_ps(scale, _mm512_set1_ps(t.step)),
                centre: _mm512_mul_ps(centre, _mm512_set1_ps(1.0 / t.step)),
            }
        }
    }
}

/// Scales and zero points of a group. ASK as with [`codes`].
#[inline(always)]
unsafe fn scales_and_zeros<const ASK: bool>(t: &Tile, g: usize) -> (__m512, __m512) {
    // SAFETY: the caller guarantees group g and the features; a prefetch of any address is allowed.
    unsafe {
        let scales = t.scales.as_ptr().add(g * t.params.scale_bytes());
        let zeros = t.zeros.as_ptr().add(g * t.params.zero_bytes());
        if ASK {
            _mm_prefetch::<_MM_HINT_T0>(scales.wrapping_add(AHEAD / 8).cast());
            _mm_prefetch::<_MM_HINT_T0>(zeros.wrapping_add(AHEAD / 16).cast());
        }
        let (scale, zeros) = match t.params {
            GroupParams::Wide => (
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())),
                _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.cast())),
            ),
            GroupParams::Mxfp4 => {
                let bits = _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(_mm_loadu_si128(scales.cast())));
                let bits = _mm512_max_epu32(bits, _mm512_set1_epi32(MXFP4_LEAST as i32));
                (_mm512_castsi512_ps(bits), _mm512_set1_epi32(t.params.no_zero().into()))
            }
            GroupParams::Iq4Nl => (
                _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())),
                _mm512_set1_epi32(t.params.no_zero().into()),
            ),
            GroupParams::Iq4Xs => {
                let shared = t.zeros.as_ptr().add(2 * (g / SHARED * TILE_ROWS));
                let shared = _mm512_cvtph_ps(_mm256_loadu_si256(shared.cast()));
                let own = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(scales.cast())));
                (_mm512_mul_ps(shared, own), _mm512_set1_epi32(t.params.no_zero().into()))
            }
            GroupParams::Narrow => {
                let pairs = _mm_loadl_epi64(zeros.cast());
                let nibbles = _mm_unpacklo_epi64(pairs, _mm_srli_epi16::<4>(pairs));
                let steps = _mm512_cvtepu8_epi32(_mm_and_si128(nibbles, _mm_set1_epi8(15)));
                let steps = _mm512_mullo_epi16(steps, _mm512_set1_epi32(NARROW_STEP.into()));
                let scales = _mm512_cvtepu8_epi32(_mm_loadu_si128(scales.cast()));
                let base = _mm512_set1_epi32(NARROW_BASE as i32);
                (
                    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32::<19>(scales), base)),
                    _mm512_add_epi32(steps, _mm512_set1_epi32(NARROW_ZERO.into())),
                )
            }
        };
        (scale, _mm512_cvtepi32_ps(zeros))
    }
}

/// Adds a group's products with one token, whose scale is `a` and whose sum is `sum`, to the totals of its rows.
#[inline(always)]
fn add_group(p: Params, dot: __m512i, a: f32, sum: f32, total: __m512) -> __m512 {
    // SAFETY: used only inlined into functions that enable the features.
    unsafe {
        let centre = _mm512_mul_ps(p.centre, _mm512_set1_ps(sum));
        let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(a), centre);
        _mm512_fmadd_ps(p.scale, value, total)
    }
}

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(q: *const i8) -> __m512i {
    // SAFETY: the caller guarantees 4 values of `q`, and the features.
    unsafe { _mm512_set1_epi32(q.cast::<i32>().read_unaligned()) }
}

/// One token.
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
        let mut total = _mm512_setzero_ps();
        let table = entries(t);
        for g in 0..t.groups {
            let (q, a, sum) = x.group(g);
            let q = q.as_ptr().add(n * UNITS * UNIT_COLS);
            // One sum for each field, because fields are multiplied by different powers of two.
            let mut dots = [_mm512_setzero_si512(); 4];
            for u in 0..UNITS {
                let codes = codes::<N, K, RAISED, true>(&planes, table, g * UNITS + u);
                for (j, codes) in codes.into_iter().enumerate() {
                    dots[j / 2] = _mm512_dpbusd_epi32(dots[j / 2], codes, four(q.add(u * UNIT_COLS + 4 * j)));
                }
            }
            let dot = lower::<K>(dots);
            total =
                add_group(Params::load::<true>(t, g), dot, *a.get_unchecked(n), *sum.get_unchecked(n), total);
        }
        _mm512_storeu_ps(sums.as_mut_ptr(), total);
    }
}

/// The sum of the fields' products, each shifted right by its field's position. Exact, because they are
/// multiples of that power of two.
#[inline(always)]
fn lower<const K: usize>(dots: [__m512i; 4]) -> __m512i {
    // SAFETY: as in `add_group`.
    unsafe {
        let [a, b, c, d] = dots;
        let sum = |x, y| _mm512_add_epi32(x, y);
        let down = |x, f| {
            let bits = const { [raised::<K>(0), raised::<K>(1), raised::<K>(2), raised::<K>(3)] }[f];
            if bits == 0 { x } else { _mm512_sra_epi32(x, _mm_cvtsi32_si128(bits as i32)) }
        };
        if K >= 3 {
            return sum(sum(a, b), down(sum(c, d), 2));
        }
        sum(sum(down(a, 0), down(b, 1)), sum(down(c, 2), down(d, 3)))
    }
}

/// A stretch of a tile, unpacked.
struct Stretch {
    codes: [MaybeUninit<[__m512i; VECTORS]>; STRETCH],
    params: [MaybeUninit<Params>; STRETCH],
}

/// Several tokens.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn many<const N: usize, const K: usize, const UNITS: usize, const TILES: usize>(
    t: [&Tile; TILES],
    x: &Activations,
    first: usize,
    mut sums: [&mut [[f32; TILE_ROWS]]; TILES],
) {
    let groups = t[0].groups;
    let mut later = Next::none();
    let mut s = [const {
        Stretch {
            codes: [const { MaybeUninit::uninit() }; STRETCH],
            params: [const { MaybeUninit::uninit() }; STRETCH],
        }
    }; TILES];
    let kernel = const {
        [
            tokens::<UNITS, TILES, 1>,
            tokens::<UNITS, TILES, 2>,
            tokens::<UNITS, TILES, 3>,
            tokens::<UNITS, TILES, 4>,
            tokens::<UNITS, TILES, 5>,
            tokens::<UNITS, TILES, 6>,
            tokens::<UNITS, TILES, 7>,
            tokens::<UNITS, TILES, BLOCK>,
        ]
    };
    for from in (0..groups).step_by(STRETCH / UNITS) {
        let stretch = from..groups.min(from + STRETCH / UNITS);
        // SAFETY: the caller guarantees it; a stretch is complete before it is used.
        unsafe {
            for (t, s) in t.iter().zip(&mut s) {
                let planes = t.planes.map(<[u8]>::as_ptr);
                let table = entries(t);
                for (i, g) in stretch.clone().enumerate() {
                    for u in 0..UNITS {
                        let codes = codes::<N, K, LOWERED, false>(&planes, table, g * UNITS + u);
                        s.codes[i * UNITS + u].write(codes);
                    }
                    s.params[i].write(Params::load::<false>(t, g));
                }
            }
            let tokens = sums[0].len();
            later.take(
                next::<N, UNITS, TILES>(&t, stretch.end % groups),
                tokens.div_ceil(BLOCK) * stretch.len(),
            );
            for n in (0..tokens).step_by(BLOCK) {
                let block = BLOCK.min(tokens - n);
                let sums = sums.each_mut().map(|sums| sums[n..].as_mut_ptr());
                kernel[block - 1](&s, x, &stretch, first + n, sums, &mut later);
            }
        }
    }
}

/// The bytes to be unpacked next, from group `from` on: of the same tiles, or of the following ones if `from` is 0.
/// Prefetching past the end of a matrix is harmless.
#[inline(always)]
fn next<const N: usize, const UNITS: usize, const TILES: usize>(
    t: &[&Tile; TILES],
    from: usize,
) -> impl Iterator<Item = (*const u8, usize)> {
    let n = (STRETCH / UNITS).min(t[0].groups - from);
    // Two tiles may be neighbours in one matrix, or come from two matrices.
    let neighbours = t[TILES - 1].zeros.as_ptr() == t[0].zeros.as_ptr_range().end;
    let tiles = if from > 0 { 0 } else { 1 + usize::from(neighbours) };
    let part = move |part: &[u8], group: usize| {
        (part.as_ptr().wrapping_add(tiles * part.len() + from * group), n * group)
    };
    t.iter().flat_map(move |t| {
        let params = [part(t.scales, t.params.scale_bytes()), part(t.zeros, t.params.zero_bytes())];
        (0..N).map(move |p| part(t.planes[p], UNITS * unit_bytes(p))).chain(params)
    })
}

/// Adds the products of a stretch of groups with T tokens from `first` on to their sums. With two tiles, each loaded
/// activation is used twice. With one, every product would need its own load, and loads would limit the speed.
///
/// # Safety
/// The machine has the features; the stretches are filled, `x` has their groups and the tokens, `sums` T rows of each tile.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
unsafe fn tokens<const UNITS: usize, const TILES: usize, const T: usize>(
    s: &[Stretch; TILES],
    x: &Activations,
    stretch: &Range<usize>,
    first: usize,
    sums: [*mut [f32; TILE_ROWS]; TILES],
    later: &mut Next,
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        for (i, g) in stretch.clone().enumerate() {
            later.ask();
            let (q, a, sum) = x.group(g);
            let q = q.as_ptr().add(first * UNITS * UNIT_COLS);
            let codes = s.each_ref().map(|s| s.codes.as_ptr().add(i * UNITS).cast::<__m512i>());
            let mut dots = [[_mm512_setzero_si512(); T]; TILES];
            for j in 0..UNITS * VECTORS {
                let codes = codes.map(|codes| _mm512_load_si512(codes.add(j)));
                for n in 0..T {
                    let four = four(q.add(n * UNITS * UNIT_COLS + 4 * j));
                    for (dots, codes) in dots.iter_mut().zip(codes) {
                        dots[n] = _mm512_dpbusd_epi32(dots[n], codes, four);
                    }
                }
            }
            for ((s, dots), sums) in s.iter().zip(dots).zip(sums) {
                let p = s.params.get_unchecked(i).assume_init();
                for (n, dot) in dots.into_iter().enumerate() {
                    let (a, sum) = (*a.get_unchecked(first + n), *sum.get_unchecked(first + n));
                    let total = sums.add(n).cast::<f32>();
                    _mm512_storeu_ps(total, add_group(p, dot, a, sum, _mm512_loadu_ps(total)));
                }
            }
        }
    }
}

impl Lanes for __m512 {
    const MANY: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller guarantees it, here and below.
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
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, x, sum) }
    }
}
