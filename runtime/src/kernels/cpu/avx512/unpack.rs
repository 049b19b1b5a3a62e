//! Merges planes to bytes. `quant::layout` defines the layout.

use crate::kernels::cpu::tiles::Tile;
use crate::quant::{PLANE_BITS, VECTOR, VECTORS, unit_bytes};
use std::arch::x86_64::*;

/// Plane bytes are prefetched this far ahead of their use. The hardware prefetcher stops at every page; this
/// does not. 4096 for every plane is a tenth slower (`benches/records/cpu-zen5.md`).
pub(super) const AHEAD: usize = 3072;

/// The same for the 1-bit planes, which are read half as fast.
const AHEAD_1: usize = 2048;

/// Selects bits: `a` where the mask is set, else `b`.
#[inline(always)]
fn select(mask: i32, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: used only inlined into functions that enable the feature.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(mask as i8), a, b) }
}

#[inline(always)]
fn left<const BITS: u32>(x: __m512i) -> __m512i {
    // SAFETY: as in `select`.
    unsafe { _mm512_slli_epi16::<BITS>(x) }
}

#[inline(always)]
fn right<const BITS: u32>(x: __m512i) -> __m512i {
    // SAFETY: as in `select`.
    unsafe { _mm512_srli_epi16::<BITS>(x) }
}

#[inline(always)]
fn and(x: __m512i, bits: i32) -> __m512i {
    // SAFETY: as in `select`.
    unsafe { _mm512_and_si512(x, _mm512_set1_epi8(bits as i8)) }
}

/// The field is at the low end of its byte, without other bits.
pub(super) const LOWERED: u8 = 0;
/// The field is at its original position, without other bits: `2^SHIFT` times its value.
pub(super) const RAISED: u8 = 1;
/// The field is at the low end of its byte, below bits of other fields.
const BARE: u8 = 2;

/// The field of `mask` from bit SHIFT of every byte on, in the form FORM.
#[inline(always)]
fn field<const FORM: u8, const SHIFT: u32>(x: __m512i, mask: i32) -> __m512i {
    match FORM {
        RAISED => and(x, mask << SHIFT),
        LOWERED => and(right::<SHIFT>(x), mask),
        _ => right::<SHIFT>(x),
    }
}

/// The number of bits by which [`unpack`] leaves vectors `2f` and `2f + 1` raised at a level of N planes.
pub(super) const fn raised<const N: usize>(f: usize) -> u32 {
    match N {
        1 => [0, 2, 4, 6][f],
        2 => [0, 1, 4, 5][f],
        3 => [0, 0, 4, 4][f],
        4 => [0, 0, 2, 2][f],
        _ => 0,
    }
}

/// Two 2-bit planes as nibbles: `high` gives the upper two bits, `low` the lower. The first result has fields 0 and 2 in
/// its low and high nibbles, the second 1 and 3.
#[inline(always)]
fn nibbles(high: __m512i, low: __m512i) -> (__m512i, __m512i) {
    (select(0x33, low, left::<2>(high)), select(0x33, right::<2>(low), high))
}

/// The entries of a tile's table, in each quarter of a register.
///
/// # Safety
/// The machine has the features.
#[inline(always)]
pub(super) unsafe fn entries(t: &Tile) -> __m512i {
    // SAFETY: the caller guarantees it.
    unsafe {
        match t.table {
            Some((entries, _)) => _mm512_broadcast_i32x4(_mm_loadu_si128(entries.as_ptr().cast())),
            None => _mm512_setzero_si512(),
        }
    }
}

/// The bytes of `table` that the low six bits of every byte of `codes` index.
///
/// # Safety
/// The machine has the features, and VBMI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn permuted(table: __m512i, codes: __m512i) -> __m512i {
    let out;
    // In assembly, because the functions into which this is inlined do not enable the feature.
    // SAFETY: the caller guarantees it; writes one register.
    unsafe {
        std::arch::asm!(
            "vpermb {out}, {codes}, {table}",
            out = lateout(zmm_reg) out,
            codes = in(zmm_reg) codes,
            table = in(zmm_reg) table,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    out
}

/// The codes of unit `u`, one byte each, like [`unpack`]. If K is not N, they are looked up in the table, and
/// nothing is raised.
///
/// # Safety
/// As [`unpack`].
#[inline(always)]
pub(super) unsafe fn codes<const N: usize, const K: usize, const FORM: u8, const ASK: bool>(
    planes: &[*const u8; 5],
    table: __m512i,
    u: usize,
) -> [__m512i; VECTORS] {
    // SAFETY: the caller guarantees it; table codes are below 16.
    unsafe {
        if K == N {
            return unpack::<N, FORM, ASK>(planes, u);
        }
        if K == super::PERMUTED {
            return unpack::<N, BARE, ASK>(planes, u).map(|codes| permuted(table, codes));
        }
        unpack::<N, LOWERED, ASK>(planes, u).map(|codes| _mm512_shuffle_epi8(table, codes))
    }
}

/// The codes of unit `u`, one byte each, in the form FORM. [`RAISED`] saves shifting every field to the low end of
/// its byte: the vectors, and so their sums, stay [`raised`]. ASK prefetches the following bytes of the planes.
///
/// # Safety
/// Unit `u` is in the first N planes, and the machine has the features.
#[inline(always)]
unsafe fn unpack<const N: usize, const FORM: u8, const ASK: bool>(
    planes: &[*const u8; 5],
    u: usize,
) -> [__m512i; VECTORS] {
    let load = |p: usize, half: usize| {
        // SAFETY: the caller guarantees it; a prefetch of any address is allowed.
        unsafe {
            let at = planes[p].add(u * unit_bytes(p) + half * VECTOR);
            let ahead = if PLANE_BITS[p] == 1 { AHEAD_1 } else { AHEAD };
            if ASK {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast());
            }
            _mm512_loadu_si512(at.cast())
        }
    };
    // Fields f of both halves are vectors 2f and 2f + 1.
    let [mut f0, mut f1, mut f2, mut f3] = [[load(0, 0), load(0, 1)]; 4];
    let base = f0;
    if N == 1 {
        f0 = base.map(|x| field::<FORM, 0>(x, 3));
        f1 = base.map(|x| field::<FORM, 2>(x, 3));
        f2 = base.map(|x| field::<FORM, 4>(x, 3));
        f3 = base.map(|x| field::<FORM, 6>(x, 3));
        return join(f0, f1, f2, f3);
    }
    let first = load(1, 0);
    if N == 2 {
        // Two bits of plane 0 above one of plane 1: fields 0 and 2 at bits 0 and 4, fields 1 and 3 at bits 1 and 5.
        let next = right::<1>(first);
        let even = [select(0x66, left::<1>(base[0]), first), select(0x66, left::<1>(base[1]), next)];
        let odd = [select(0xcc, base[0], next), select(0xcc, base[1], right::<2>(first))];
        f0 = even.map(|x| field::<FORM, 0>(x, 7));
        f1 = odd.map(|x| field::<FORM, 1>(x, 7));
        f2 = even.map(|x| field::<FORM, 4>(x, 7));
        f3 = odd.map(|x| field::<FORM, 5>(x, 7));
        return join(f0, f1, f2, f3);
    }
    let second = load(2, 0);
    // The two 1-bit planes as one of two bits, for the even vectors and for the odd ones.
    let even = select(0xaa, left::<1>(first), second);
    let odd = select(0xaa, first, right::<1>(second));
    let ((n0, n2), (n1, n3)) = (nibbles(base[0], even), nibbles(base[1], odd));
    let (low, high) = ([n0, n1], [n2, n3]);
    if N == 3 {
        f0 = low.map(|x| field::<FORM, 0>(x, 15));
        f1 = high.map(|x| field::<FORM, 0>(x, 15));
        f2 = low.map(|x| field::<FORM, 4>(x, 15));
        f3 = high.map(|x| field::<FORM, 4>(x, 15));
        return join(f0, f1, f2, f3);
    }
    let third = [load(3, 0), load(3, 1)];
    if N == 4 {
        for half in 0..2 {
            let (x, y, bits) = (low[half], high[half], third[half]);
            f0[half] = and(select(3, bits, left::<2>(x)), 63);
            f1[half] = and(select(3, right::<2>(bits), left::<2>(y)), 63);
            f2[half] = field::<FORM, 2>(select(0x0c, right::<2>(bits), x), 63);
            f3[half] = field::<FORM, 2>(select(0x0c, right::<4>(bits), y), 63);
        }
        return join(f0, f1, f2, f3);
    }
    let ((m0, m2), (m1, m3)) = (nibbles(third[0], load(4, 0)), nibbles(third[1], load(4, 1)));
    for (half, (m, n)) in [(m0, m2), (m1, m3)].into_iter().enumerate() {
        f0[half] = select(15, m, left::<4>(low[half]));
        f1[half] = select(15, n, left::<4>(high[half]));
        f2[half] = select(15, right::<4>(m), low[half]);
        f3[half] = select(15, right::<4>(n), high[half]);
    }
    join(f0, f1, f2, f3)
}

#[inline(always)]
fn join(f0: [__m512i; 2], f1: [__m512i; 2], f2: [__m512i; 2], f3: [__m512i; 2]) -> [__m512i; VECTORS] {
    [f0[0], f0[1], f1[0], f1[1], f2[0], f2[1], f3[0], f3[1]]
}
