//! Ways to divide a 4-bit code into planes, and groups of 32 against 64: a prototype of one token's product
//! with AVX-512 for each, from the L2 cache and from memory, on one thread. The file format uses 2+1+1;
//! results are in `records/cpu-avx512.md`.
#![allow(missing_docs, unsafe_code)]

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(target_arch = "x86_64")]
mod prototype {
    use criterion::{BenchmarkId, Criterion, Throughput};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Weights per unit: 16 rows of 32 columns.
    const UNIT: usize = 512;

    /// The layout of codes: bytes per unit in each stream of memory.
    #[derive(Clone, Copy, PartialEq, Debug)]
    pub enum Cut {
        Two,
        TwoOne,
        TwoOneOne,
        TwoTwo,
        ThreeOne,
        Nibbles,
    }

    impl Cut {
        const ALL: [Cut; 6] =
            [Cut::Two, Cut::TwoOne, Cut::TwoOneOne, Cut::TwoTwo, Cut::ThreeOne, Cut::Nibbles];

        const fn streams(self) -> &'static [usize] {
            match self {
                Cut::Two => &[128],
                Cut::TwoOne => &[128, 64],
                Cut::TwoOneOne => &[128, 64, 64],
                Cut::TwoTwo => &[128, 128],
                Cut::ThreeOne => &[192, 64],
                Cut::Nibbles => &[256],
            }
        }

        fn name(self) -> &'static str {
            match self {
                Cut::Two => "2 bits: 2",
                Cut::TwoOne => "3 bits: 2+1",
                Cut::TwoOneOne => "4 bits: 2+1+1",
                Cut::TwoTwo => "4 bits: 2+2",
                Cut::ThreeOne => "4 bits: 3+1",
                Cut::Nibbles => "4 bits: 4",
            }
        }
    }

    #[inline(always)]
    fn select(mask: i32, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: inlined into `product`, which enables the features; so are the functions below.
        unsafe { _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(mask as i8), a, b) }
    }

    #[inline(always)]
    fn and(x: __m512i, bits: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(bits as i8)) }
    }

    #[inline(always)]
    fn left<const N: u32>(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi16::<N>(x) }
    }

    #[inline(always)]
    fn right<const N: u32>(x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srli_epi16::<N>(x) }
    }

    /// Nibbles, of which each register gives two vectors of codes; those of high nibbles are raised by four bits.
    #[inline(always)]
    fn spread(x: [__m512i; 4]) -> [__m512i; 8] {
        let [a, b, c, d] = x;
        let high = 0xf0;
        [
            and(a, 15),
            and(b, 15),
            and(c, 15),
            and(d, 15),
            and(a, high),
            and(b, high),
            and(c, high),
            and(d, high),
        ]
    }

    #[inline(always)]
    fn nibbles(high: __m512i, low: __m512i) -> [__m512i; 2] {
        [select(0x33, low, left::<2>(high)), select(0x33, right::<2>(low), high)]
    }

    /// Codes of a unit; `load(s, i)` is register i of stream s.
    #[inline(always)]
    unsafe fn codes<const CUT: u8>(streams: &[*const u8; 3], unit: usize) -> [__m512i; 8] {
        let load = |s: usize, i: usize| {
            // SAFETY: the caller has the unit in every stream; a prefetch of any address is allowed.
            unsafe {
                let at = streams[s].add(unit * Cut::ALL[CUT as usize].streams()[s] + 64 * i);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4096).cast());
                _mm512_loadu_si512(at.cast())
            }
        };
        let cut = Cut::ALL[CUT as usize];
        let base = [load(0, 0), load(0, 1)];
        match cut {
            Cut::Two => {
                let [a, b] = base;
                [
                    and(a, 3),
                    and(b, 3),
                    and(a, 12),
                    and(b, 12),
                    and(a, 48),
                    and(b, 48),
                    and(a, 192),
                    and(b, 192),
                ]
            }
            Cut::TwoOne => {
                let first = load(1, 0);
                let next = right::<1>(first);
                let (a, b) =
                    (select(0x66, left::<1>(base[0]), first), select(0x66, left::<1>(base[1]), next));
                let (c, d) = (select(0xcc, base[0], next), select(0xcc, base[1], right::<2>(first)));
                [
                    and(a, 7),
                    and(b, 7),
                    and(c, 14),
                    and(d, 14),
                    and(a, 112),
                    and(b, 112),
                    and(c, 224),
                    and(d, 224),
                ]
            }
            Cut::TwoOneOne | Cut::ThreeOne => {
                let first = if cut == Cut::ThreeOne { load(0, 2) } else { load(1, 0) };
                let second = if cut == Cut::ThreeOne { load(1, 0) } else { load(2, 0) };
                let even = select(0xaa, left::<1>(first), second);
                let odd = select(0xaa, first, right::<1>(second));
                let ([a, c], [b, d]) = (nibbles(base[0], even), nibbles(base[1], odd));
                spread([a, b, c, d])
            }
            Cut::TwoTwo => {
                let ([a, c], [b, d]) = (nibbles(base[0], load(1, 0)), nibbles(base[1], load(1, 1)));
                spread([a, b, c, d])
            }
            Cut::Nibbles => spread([base[0], base[1], load(0, 2), load(0, 3)]),
        }
    }

    /// # Safety
    /// The machine has the features; streams, scales, zero points and activations belong to `units` units.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
    unsafe fn product<const CUT: u8, const UNITS: usize>(
        streams: &[Vec<u8>],
        scales: &[u8],
        zeros: &[u8],
        q: &[i8],
        units: usize,
    ) -> f32 {
        let at = std::array::from_fn(|s| streams.get(s).map_or(std::ptr::null(), |bytes| bytes.as_ptr()));
        // SAFETY: the caller guarantees it.
        unsafe {
            let mut total = _mm512_setzero_ps();
            for g in 0..units / UNITS {
                let mut dots = [_mm512_setzero_si512(); 4];
                for u in 0..UNITS {
                    let unit = g * UNITS + u;
                    let q = q.as_ptr().add(unit % 64 * 32).cast::<i32>();
                    let codes = codes::<CUT>(&at, unit);
                    for j in 0..8 {
                        let four = _mm512_set1_epi32(q.add(j).read_unaligned());
                        dots[j / 2] = _mm512_dpbusd_epi32(dots[j / 2], codes[j], four);
                    }
                }
                let high = _mm512_srai_epi32::<4>(_mm512_add_epi32(dots[2], dots[3]));
                let dot = _mm512_add_epi32(_mm512_add_epi32(dots[0], dots[1]), high);
                let zero = _mm_loadu_si128(zeros.as_ptr().add(16 * g).cast());
                let zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zero));
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().add(32 * g).cast()));
                let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(0.5), zero);
                total = _mm512_fmadd_ps(scale, value, total);
            }
            _mm512_reduce_add_ps(total)
        }
    }

    fn one<const CUT: u8>(c: &mut Criterion, place: &str, units: usize) {
        let cut = Cut::ALL[CUT as usize];
        let streams: Vec<Vec<u8>> = cut.streams().iter().map(|size| vec![0x5a; size * units]).collect();
        let (scales, zeros, q) = (vec![1u8; units * 32], vec![3u8; units * 16], vec![1i8; 64 * 32]);
        let mut group = c.benchmark_group(place);
        group.sample_size(10).measurement_time(std::time::Duration::from_millis(300));
        group.warm_up_time(std::time::Duration::from_millis(100));
        group.throughput(Throughput::Elements((units * UNIT) as u64));
        for size in [64, 32] {
            group.bench_function(
                BenchmarkId::from_parameter(format!("{}, groups of {size}", cut.name())),
                |b| {
                    b.iter(|| {
                        let (s, z, q) = (black_box(&scales), &zeros, &q);
                        // SAFETY: detected by the caller; the sizes were chosen above.
                        unsafe {
                            match size {
                                64 => product::<CUT, 2>(&streams, s, z, q, units),
                                _ => product::<CUT, 1>(&streams, s, z, q, units),
                            }
                        }
                    });
                },
            );
        }
        group.finish();
    }

    pub fn all(c: &mut Criterion) {
        use std::arch::is_x86_feature_detected as has;
        if !(has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni")) {
            return;
        }
        for (place, units) in [("from the cache", 2 << 10), ("from memory", 1 << 19)] {
            one::<0>(c, place, units);
            one::<1>(c, place, units);
            one::<2>(c, place, units);
            one::<3>(c, place, units);
            one::<4>(c, place, units);
            one::<5>(c, place, units);
        }
    }
}

fn layouts(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    prototype::all(c);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

criterion_group!(benches, layouts);
criterion_main!(benches);
