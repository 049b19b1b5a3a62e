//! Merges planes to codes with AVX2, half a unit's rows at a time, by shifts and selects. `quant::layout`
//! defines the layout. All functions here are inlined into functions that enable the features.

use crate::kernels::cpu::tiles::Tile;
use crate::quant::{VECTOR, VECTORS, unit_bytes};
use std::arch::x86_64::*;

/// The codes of half a unit's rows, one register per vector.
pub(super) type Half = [__m256i; VECTORS];

#[inline(always)]
fn select(mask: i32, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: used only inlined into functions that enable the feature.
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

/// The entries of a tile's table, in each half of a register: whole, and as two nibbles.
pub(super) struct Entries {
    whole: __m256i,
    high: __m256i,
    low: __m256i,
}

impl Entries {
    /// Zeros if the tile has no table.
    #[inline(always)]
    pub(super) unsafe fn of(t: &Tile) -> Entries {
        // SAFETY: the caller guarantees the features.
        unsafe {
            let whole = match t.table {
                Some((entries, _)) => _mm256_broadcastsi128_si256(_mm_loadu_si128(entries.as_ptr().cast())),
                None => _mm256_setzero_si256(),
            };
            Entries { whole, high: and(shift!(whole, right 4), 15), low: and(whole, 15) }
        }
    }
}

/// The codes of 8 rows of unit `u`, like [`unpack`]. If K is not N, they are looked up in the table and have
/// the form of codes of K planes.
#[inline(always)]
pub(super) unsafe fn codes<const N: usize, const K: usize>(
    planes: &[*const u8; 5],
    table: &Entries,
    u: usize,
    rows: usize,
) -> (Half, Half) {
    // SAFETY: the caller guarantees it; table codes are below 16.
    unsafe {
        let (codes, low) = unpack::<N>(planes, u, rows);
        if K == N {
            return (codes, low);
        }
        let of = |entries: __m256i| codes.map(|codes| _mm256_shuffle_epi8(entries, codes));
        if K == 5 { (of(table.high), of(table.low)) } else { (of(table.whole), low) }
    }
}

/// The codes of 8 rows of unit `u`: whole, or at 8 bits the upper nibbles and the lower ones.
#[inline(always)]
unsafe fn unpack<const N: usize>(planes: &[*const u8; 5], u: usize, rows: usize) -> (Half, Half) {
    // SAFETY: the caller guarantees unit `u` in the first N planes, and the features.
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
