//! Unpacking and dot products for x86-64: AVX2, and AVX-512 with VNNI.
//!
//! The functions that [`super::nested`] calls are safe: they take an [`Isa`], which exists only where the machine has the
//! features, and check their slices. Lanes hold partial sums of a whole row and are added up once, at its end.
#![allow(unsafe_code)]

use super::isa::{Isa, Kind};
use super::nested::{RUN, Token};
use std::arch::x86_64::*;

/// The 16 bytes of run `run` in a 2-bit plane, and the 8 of one in a 1-bit plane.
fn two_bits(plane: &[u8], run: usize) -> &[u8; 16] {
    plane[16 * run..][..16].try_into().expect("16 bytes")
}

fn one_bit(plane: &[u8], run: usize) -> u64 {
    u64::from_le_bytes(plane[8 * run..][..8].try_into().expect("8 bytes"))
}

pub(super) fn unpack_avx512(
    isa: Isa,
    group: usize,
    planes: &[&[u8]; 5],
    n: usize,
    run: usize,
    out: &mut [u8; RUN],
) {
    assert!(isa.kind() == Kind::Avx512);
    // SAFETY: an `Isa` of this kind exists only where the features were detected.
    unsafe { unpack512(group, planes, n, run, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn unpack512(group: usize, planes: &[&[u8]; 5], n: usize, run: usize, out: &mut [u8; RUN]) {
    // Which 64-bit piece of the plane each output piece comes from, and how far it is shifted: a group of 64 is four
    // shifted copies of 16 bytes, two groups of 32 are four shifted copies of 8 bytes each.
    let (pieces, shifts) = if group == 64 {
        (_mm512_setr_epi64(0, 1, 0, 1, 0, 1, 0, 1), _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6))
    } else {
        (_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6))
    };
    let three = _mm512_set1_epi8(3);
    let spread = |plane: &[u8]| {
        let bytes = two_bits(plane, run);
        // SAFETY: `bytes` are 16 bytes; the load needs no alignment.
        let v = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        let v = _mm512_permutexvar_epi64(pieces, _mm512_castsi128_si512(v));
        _mm512_and_si512(_mm512_srlv_epi64(v, shifts), three)
    };
    let mut codes = spread(planes[0]);
    if n > 1 {
        codes = _mm512_add_epi8(codes, codes);
        codes = _mm512_mask_add_epi8(codes, one_bit(planes[1], run), codes, _mm512_set1_epi8(1));
    }
    if n > 2 {
        codes = _mm512_add_epi8(codes, codes);
        codes = _mm512_mask_add_epi8(codes, one_bit(planes[2], run), codes, _mm512_set1_epi8(1));
    }
    if n > 3 {
        codes = _mm512_or_si512(_mm512_slli_epi16::<2>(codes), spread(planes[3]));
    }
    if n > 4 {
        codes = _mm512_or_si512(_mm512_slli_epi16::<2>(codes), spread(planes[4]));
    }
    // SAFETY: `out` are 64 bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) }
}

pub(super) fn dot_avx512(isa: Isa, group: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    assert!(isa.kind() == Kind::Avx512);
    let runs = codes.len() / RUN;
    let groups = runs * (RUN / group);
    assert!(x.q.len() >= codes.len() && scale.len() >= groups && x.scale.len() >= groups);
    // SAFETY: the features are there (see `Isa`), and the lengths were checked.
    unsafe { dot512(group, runs, codes, scale, x) }
}

/// # Safety
/// `codes` and `x.q` have `runs` runs, `scale` and `x.scale` their groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dot512(group: usize, runs: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 2];
    for run in 0..runs {
        // SAFETY: `run < runs`, and the caller vouches for that many of everything.
        let (c, q, factor) = unsafe {
            let c = _mm512_loadu_si512(codes.as_ptr().add(run * RUN).cast());
            let q = _mm512_loadu_si512(x.q.as_ptr().add(run * RUN).cast());
            let product = |g: usize| _mm512_set1_ps(scale.get_unchecked(g) * x.scale.get_unchecked(g));
            let factor = if group == 64 {
                product(run)
            } else {
                _mm512_mask_blend_ps(0xff00, product(2 * run), product(2 * run + 1))
            };
            (c, q, factor)
        };
        let dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), c, q));
        // Two sums, so that one addition need not wait for the last.
        sums[run % 2] = _mm512_fmadd_ps(dot, factor, sums[run % 2]);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

pub(super) fn unpack_avx2(
    isa: Isa,
    group: usize,
    planes: &[&[u8]; 5],
    n: usize,
    run: usize,
    out: &mut [u8; RUN],
) {
    assert!(isa.kind() == Kind::Avx2);
    // SAFETY: an `Isa` of this kind exists only where the features were detected.
    unsafe { unpack256(group, planes, n, run, out) }
}

#[target_feature(enable = "avx2")]
fn unpack256(group: usize, planes: &[&[u8]; 5], n: usize, run: usize, out: &mut [u8; RUN]) {
    let three = _mm256_set1_epi8(3);
    for half in 0..2 {
        let spread = |plane: &[u8]| {
            let bytes = two_bits(plane, run);
            let low = i64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            let high = i64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
            let (v, shifts) = if group == 64 {
                let base = 4 * half as i64;
                (_mm256_setr_epi64x(low, high, low, high), _mm256_setr_epi64x(base, base, base + 2, base + 2))
            } else {
                (_mm256_set1_epi64x(if half == 0 { low } else { high }), _mm256_setr_epi64x(0, 2, 4, 6))
            };
            _mm256_and_si256(_mm256_srlv_epi64(v, shifts), three)
        };
        // One where the bit is set: each byte of the plane is copied to the eight lanes of its weights.
        let bits = |plane: &[u8]| {
            let word = (one_bit(plane, run) >> (32 * half)) as i32;
            let lanes = _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3,
                3,
            );
            let select = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), lanes), select);
            // Equal lanes are −1.
            _mm256_cmpeq_epi8(v, select)
        };
        let mut codes = spread(planes[0]);
        if n > 1 {
            codes = _mm256_sub_epi8(_mm256_add_epi8(codes, codes), bits(planes[1]));
        }
        if n > 2 {
            codes = _mm256_sub_epi8(_mm256_add_epi8(codes, codes), bits(planes[2]));
        }
        if n > 3 {
            codes = _mm256_or_si256(_mm256_slli_epi16::<2>(codes), spread(planes[3]));
        }
        if n > 4 {
            codes = _mm256_or_si256(_mm256_slli_epi16::<2>(codes), spread(planes[4]));
        }
        let out = &mut out[32 * half..][..32];
        // SAFETY: `out` are 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), codes) }
    }
}

pub(super) fn dot_avx2(isa: Isa, group: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    assert!(isa.kind() == Kind::Avx2);
    let halves = codes.len() / 32;
    let groups = codes.len() / group;
    assert!(x.q.len() >= codes.len() && scale.len() >= groups && x.scale.len() >= groups);
    // SAFETY: the features are there (see `Isa`), and the lengths were checked.
    unsafe { dot256(group, halves, codes, scale, x) }
}

/// # Safety
/// `codes` and `x.q` have `halves` runs of 32, `scale` and `x.scale` their groups.
#[target_feature(enable = "avx2,fma")]
unsafe fn dot256(group: usize, halves: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    let (low_bits, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); 2];
    for half in 0..halves {
        let g = if group == 64 { half / 2 } else { half };
        // SAFETY: `half < halves`, and the caller vouches for that many of everything.
        let (c, q, factor) = unsafe {
            let c = _mm256_loadu_si256(codes.as_ptr().add(half * 32).cast());
            let q = _mm256_loadu_si256(x.q.as_ptr().add(half * 32).cast());
            (c, q, _mm256_set1_ps(scale.get_unchecked(g) * x.scale.get_unchecked(g)))
        };
        // `maddubs` adds pairs in 16 bits, which 8-bit codes would overflow: high and low halves go separately.
        let low = _mm256_maddubs_epi16(_mm256_and_si256(c, low_bits), q);
        let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(c), low_bits), q);
        let low = _mm256_madd_epi16(low, ones);
        let high = _mm256_slli_epi32::<4>(_mm256_madd_epi16(high, ones));
        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
        sums[half % 2] = _mm256_fmadd_ps(dot, factor, sums[half % 2]);
    }
    let sum = _mm256_add_ps(sums[0], sums[1]);
    let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}
