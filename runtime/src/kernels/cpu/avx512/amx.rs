//! Products of many tokens with AMX in bfloat16: two tiles of weights times two blocks of sixteen tokens.
//!
//! A stretch of both tiles is converted to bfloat16 in the L1 cache, with scale and zero point applied. It is
//! multiplied with all tokens of a block, and their sums stay in single precision over all columns. A unit of
//! a tile is a tile register of pairs of columns, in the order of its codes: lane r of a vector is row r.

use super::scales_and_zeros;
use super::unpack::{LOWERED, codes, entries};
use crate::kernels::cpu::halves::Halves;
use crate::kernels::cpu::tiles::{Sums, TOKEN_BLOCK, Tile};
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTOR, VECTORS};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Tokens per tile register.
const ROWS: usize = 16;

/// All tile registers have 16 rows of 64 bytes: 0 to 3 sums, 4 and 5 activations, 6 and 7 weights.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// This thread's tile registers: configured, and released on drop.
struct Tiles(());

impl Tiles {
    /// # Safety
    /// The machine has AMX, this process may use it, and this thread has no other `Tiles`.
    unsafe fn new() -> Self {
        let config = &const { CONFIG };
        // SAFETY: the caller guarantees it; the configuration is valid, and nothing else uses tile registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, preserves_flags, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the registers hold no values that are still needed.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Units unpacked at a time: 16 KB of each of two tiles.
const STRETCH: usize = 16;

/// A stretch of a tile's weights: per unit 16 pairs of columns, per pair 16 rows.
#[repr(C, align(64))]
struct Weights([MaybeUninit<[__m512i; 2 * VECTORS]>; STRETCH]);

/// `sums[i][n][r] = row r of tile i · token first + n`, for `tokens` tokens.
///
/// # Safety
/// The machine has the features and AMX. Both tiles have N planes of one shape in groups of `UNITS · 32`,
/// with a table if K is not N. `x` has the tokens and their columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16,f16c,avx2,fma")]
pub(super) unsafe fn times<const N: usize, const K: usize, const UNITS: usize>(
    t: [&Tile; 2],
    x: &Halves,
    (first, tokens): (usize, usize),
    sums: [&mut Sums; 2],
) {
    assert!(tokens.div_ceil(ROWS) * ROWS <= TOKEN_BLOCK);
    let units = t[0].groups * UNITS;
    let mut weights = [const { Weights([const { MaybeUninit::uninit() }; STRETCH]) }; 2];
    let (x, stride) = x.token(first);
    let sums = sums.map(|s| s.0.as_mut_ptr().cast::<u8>());
    // SAFETY: the caller guarantees it. A stretch is complete before it is used; rows of activations beyond the last
    // token are spare, and those of sums exist by the assertion; a unit's activations are a line of the token's row.
    unsafe {
        let _tiles = Tiles::new();
        for from in (0..units).step_by(STRETCH) {
            let n = STRETCH.min(units - from);
            for (t, weights) in t.iter().zip(&mut weights) {
                fill::<N, K, UNITS>(t, from, n, weights);
            }
            let w = [weights[0].0.as_ptr().cast::<u8>(), weights[1].0.as_ptr().cast::<u8>()];
            let mut row = 0;
            while row < tokens {
                let two = row + ROWS < tokens;
                let x = x.add(row * stride + from * VECTOR);
                let sums = sums.map(|s| s.add(row * VECTOR));
                match two {
                    true => block::<true>(x, stride, w, n, from == 0, sums),
                    false => block::<false>(x, stride, w, n, from == 0, sums),
                }
                row += if two { 2 * ROWS } else { ROWS };
            }
        }
    }
}

/// Converts a code to a weight: scale and offset, both for rows 0 to 7 and rows 8 to 15, each twice, in the
/// order of the pairs of columns.
#[derive(Clone, Copy)]
struct Params {
    scale: [__m512; 2],
    offset: [__m512; 2],
}

/// A code becomes a float by placing it in the mantissa of this number, which the offset subtracts again.
/// Codes of up to 7 bits go to the third byte of 128: the offset's rounding error is 2⁻¹⁷ of a code's step.
/// Codes of 8 bits go to the second byte of 2¹⁵: 2⁻⁹ of the finest step.
const fn magic<const K: usize>() -> (f32, usize) {
    if K == 5 { (32768.0, 1) } else { (128.0, 2) }
}

impl Params {
    #[inline(always)]
    unsafe fn load<const K: usize>(t: &Tile, g: usize) -> Params {
        // SAFETY: the caller guarantees group g and the features; a prefetch of any address is allowed.
        unsafe {
            let (scale, zeros) = scales_and_zeros::<true>(t, g);
            let unit = _mm512_mul_ps(scale, _mm512_set1_ps(t.alpha));
            let scale = _mm512_mul_ps(unit, _mm512_set1_ps(t.step));
            let centre = _mm512_mul_ps(unit, _mm512_sub_ps(_mm512_set1_ps(t.middle), zeros));
            let offset = _mm512_fnmadd_ps(_mm512_set1_ps(magic::<K>().0), scale, centre);
            let low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let rows = [low, _mm512_add_epi32(low, _mm512_set1_epi32(8))];
            Params {
                scale: rows.map(|rows| _mm512_permutexvar_ps(rows, scale)),
                offset: rows.map(|rows| _mm512_permutexvar_ps(rows, offset)),
            }
        }
    }
}

/// The byte of a vector of codes that goes to byte `at` of every lane, for pair `pair` of its columns and half `half`
/// of its rows.
const fn places(at: usize, pair: usize, half: usize) -> [u8; VECTOR] {
    let mut places = [0; VECTOR];
    let mut lane = 0;
    while lane < 16 {
        places[4 * lane + at] = (32 * half + 4 * (lane / 2) + 2 * pair + lane % 2) as u8;
        lane += 1;
    }
    places
}

/// Converts units `from..from + n` to weights.
///
/// # Safety
/// As [`times`].
#[inline(always)]
unsafe fn fill<const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    from: usize,
    n: usize,
    to: &mut Weights,
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    let (number, at) = const { magic::<K>() };
    let mask = 0x1111_1111_1111_1111 << at;
    // SAFETY: the caller guarantees it; tables are one register long.
    unsafe {
        let places = const {
            let at = magic::<K>().1;
            [[places(at, 0, 0), places(at, 0, 1)], [places(at, 1, 0), places(at, 1, 1)]]
        };
        let places = places.map(|p| p.map(|p| _mm512_loadu_si512(p.as_ptr().cast())));
        let number = _mm512_castps_si512(_mm512_set1_ps(number));
        let table = entries(t);
        let mut p = Params::load::<K>(t, from / UNITS);
        for (i, to) in to.0[..n].iter_mut().enumerate() {
            let unit = from + i;
            if unit.is_multiple_of(UNITS) {
                p = Params::load::<K>(t, unit / UNITS);
            }
            let to = to.as_mut_ptr().cast::<__m512i>();
            for (j, codes) in codes::<N, K, LOWERED, true>(&planes, table, unit).into_iter().enumerate() {
                for (pair, places) in places.iter().enumerate() {
                    let value = |half: usize| {
                        let code = _mm512_mask_permutexvar_epi8(number, mask, places[half], codes);
                        _mm512_fmadd_ps(_mm512_castsi512_ps(code), p.scale[half], p.offset[half])
                    };
                    let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(value(1), value(0)));
                    _mm512_store_si512(to.add(2 * j + pair), both);
                }
            }
        }
    }
}

/// `n` units of both tiles times 16 or 32 tokens.
///
/// # Safety
/// As [`times`]; `x` and `sums` are those of the first token.
#[inline(always)]
unsafe fn block<const TWO: bool>(
    x: *const u8,
    stride: usize,
    w: [*const u8; 2],
    n: usize,
    anew: bool,
    sums: [*mut u8; 2],
) {
    // Units between a prefetch and the use of its line.
    const BEFORE: usize = 2;
    const UNIT_BYTES: usize = UNIT_COLS * TILE_ROWS * 2;
    let below = ROWS * VECTOR;
    // SAFETY: the caller guarantees it; tile registers are ours, and the compiler does not use them, so they
    // keep their values from one block of assembly to the next. A prefetch of any address is allowed.
    unsafe {
        if anew {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        } else {
            asm!(
                "tileloadd tmm0, [{a} + {v}]",
                "tileloadd tmm1, [{b} + {v}]",
                a = in(reg) sums[0], b = in(reg) sums[1], v = in(reg) VECTOR,
                options(nostack, preserves_flags, readonly),
            );
            if TWO {
                asm!(
                    "tileloadd tmm2, [{a} + {v}]",
                    "tileloadd tmm3, [{b} + {v}]",
                    a = in(reg) sums[0].add(below), b = in(reg) sums[1].add(below), v = in(reg) VECTOR,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
        for u in 0..n {
            let (a, b) = (w[0].add(u * UNIT_BYTES), w[1].add(u * UNIT_BYTES));
            let x = x.add(u * VECTOR);
            if TWO {
                asm!(
                    "tileloadd tmm4, [{x} + {s}]",
                    "tileloadd tmm6, [{a} + {v}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {v}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{y} + {s}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    x = in(reg) x, y = in(reg) x.add(ROWS * stride), s = in(reg) stride,
                    a = in(reg) a, b = in(reg) b, v = in(reg) VECTOR,
                    options(nostack, preserves_flags, readonly),
                );
            } else {
                asm!(
                    "tileloadd tmm4, [{x} + {s}]",
                    "tileloadd tmm6, [{a} + {v}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {v}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    x = in(reg) x, s = in(reg) stride,
                    a = in(reg) a, b = in(reg) b, v = in(reg) VECTOR,
                    options(nostack, preserves_flags, readonly),
                );
            }
            for row in 0..if TWO { 2 * ROWS } else { ROWS } {
                _mm_prefetch::<_MM_HINT_T0>(x.wrapping_add(row * stride + BEFORE * VECTOR).cast());
            }
        }
        store::<TWO>(sums, below);
    }
}

/// # Safety
/// As [`block`].
#[inline(always)]
unsafe fn store<const TWO: bool>(sums: [*mut u8; 2], below: usize) {
    // SAFETY: as in `block`.
    unsafe {
        asm!(
            "tilestored [{a} + {v}], tmm0",
            "tilestored [{b} + {v}], tmm1",
            a = in(reg) sums[0], b = in(reg) sums[1], v = in(reg) VECTOR,
            options(nostack, preserves_flags),
        );
        if TWO {
            asm!(
                "tilestored [{a} + {v}], tmm2",
                "tilestored [{b} + {v}], tmm3",
                a = in(reg) sums[0].add(below), b = in(reg) sums[1].add(below), v = in(reg) VECTOR,
                options(nostack, preserves_flags),
            );
        }
    }
}
