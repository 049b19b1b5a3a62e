//! Dequantizes blocks to f32, one function per encoding. Callers have checked the lengths.
//!
//! Layouts follow ggml's `ggml-common.h`. In blocks of 32, byte `j` holds element `j` in its low nibble and
//! element `j + 16` in its high nibble.

use half::f16;

/// The f16 at the start of `bytes`, as f32.
#[inline]
pub fn le_f16(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    f: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (b, o) in bytes.chunks_exact(BYTES).zip(out.chunks_exact_mut(LEN)) {
        f(b.try_into().expect("exact chunk"), o.try_into().expect("exact chunk"));
    }
}

pub(super) fn f32s(bytes: &[u8], out: &mut [f32]) {
    each::<4, 1>(bytes, out, |b, o| o[0] = f32::from_le_bytes(*b));
}

pub(super) fn f16s(bytes: &[u8], out: &mut [f32]) {
    each::<2, 1>(bytes, out, |b, o| o[0] = f16::from_le_bytes(*b).to_f32());
}

pub(super) fn bf16s(bytes: &[u8], out: &mut [f32]) {
    each::<2, 1>(bytes, out, |b, o| o[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
}

/// Bit `j` of a 5-bit block's 32 high bits, moved to bit 4.
#[inline]
fn fifth(b: &[u8], j: usize) -> u8 {
    (b[j / 8] >> (j % 8) & 1) << 4
}

pub(super) fn q4_0(bytes: &[u8], out: &mut [f32]) {
    each::<18, 32>(bytes, out, |b, o| {
        let d = le_f16(b);
        for j in 0..16 {
            o[j] = d * f32::from((b[2 + j] & 15) as i8 - 8);
            o[j + 16] = d * f32::from((b[2 + j] >> 4) as i8 - 8);
        }
    });
}

pub(super) fn q4_1(bytes: &[u8], out: &mut [f32]) {
    each::<20, 32>(bytes, out, |b, o| {
        let (d, m) = (le_f16(b), le_f16(&b[2..]));
        for j in 0..16 {
            o[j] = d * f32::from(b[4 + j] & 15) + m;
            o[j + 16] = d * f32::from(b[4 + j] >> 4) + m;
        }
    });
}

pub(super) fn q5_0(bytes: &[u8], out: &mut [f32]) {
    each::<22, 32>(bytes, out, |b, o| {
        let d = le_f16(b);
        for j in 0..16 {
            o[j] = d * f32::from((b[6 + j] & 15 | fifth(&b[2..6], j)) as i8 - 16);
            o[j + 16] = d * f32::from((b[6 + j] >> 4 | fifth(&b[2..6], j + 16)) as i8 - 16);
        }
    });
}

pub(super) fn q5_1(bytes: &[u8], out: &mut [f32]) {
    each::<24, 32>(bytes, out, |b, o| {
        let (d, m) = (le_f16(b), le_f16(&b[2..]));
        for j in 0..16 {
            o[j] = d * f32::from(b[8 + j] & 15 | fifth(&b[4..8], j)) + m;
            o[j + 16] = d * f32::from(b[8 + j] >> 4 | fifth(&b[4..8], j + 16)) + m;
        }
    });
}

pub(super) fn q8_0(bytes: &[u8], out: &mut [f32]) {
    each::<34, 32>(bytes, out, |b, o| {
        let d = le_f16(b);
        for j in 0..32 {
            o[j] = d * f32::from(b[2 + j] as i8);
        }
    });
}

pub(super) fn q2_k(bytes: &[u8], out: &mut [f32]) {
    each::<84, 256>(bytes, out, |b, o| {
        let (scales, qs) = (&b[..16], &b[16..80]);
        let (d, dmin) = (le_f16(&b[80..]), le_f16(&b[82..]));
        for (g, o) in o.chunks_exact_mut(16).enumerate() {
            let (scale, min) = (d * f32::from(scales[g] & 15), dmin * f32::from(scales[g] >> 4));
            // 128 elements share 32 bytes; each run of 32 elements has its own two bits of each byte.
            let (from, shift) = (g / 8 * 32 + g % 2 * 16, g % 8 / 2 * 2);
            for j in 0..16 {
                o[j] = scale * f32::from(qs[from + j] >> shift & 3) - min;
            }
        }
    });
}

pub(super) fn q3_k(bytes: &[u8], out: &mut [f32]) {
    each::<110, 256>(bytes, out, |b, o| {
        let (high, qs, packed) = (&b[..32], &b[32..96], &b[96..108]);
        let d = le_f16(&b[108..]);
        for (g, o) in o.chunks_exact_mut(16).enumerate() {
            let low = if g < 8 { packed[g] & 15 } else { packed[g - 8] >> 4 };
            let scale = (low | (packed[8 + g % 4] >> (g / 4 * 2) & 3) << 4) as i8 - 32;
            let scale = d * f32::from(scale);
            let (from, shift, bit) = (g / 8 * 32 + g % 2 * 16, g % 8 / 2 * 2, g / 2);
            for j in 0..16 {
                let q = (qs[from + j] >> shift & 3) as i8
                    - if high[g % 2 * 16 + j] >> bit & 1 == 0 { 4 } else { 0 };
                o[j] = scale * f32::from(q);
            }
        }
    });
}

/// The 6-bit scale and minimum of group `g` (0–7), from the 12 packed bytes of Q4_K and Q5_K.
#[inline]
pub fn k_scale_min(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        let high = packed[g + 4];
        (high & 15 | packed[g - 4] >> 6 << 4, high >> 4 | packed[g] >> 6 << 4)
    }
}

pub(super) fn q4_k(bytes: &[u8], out: &mut [f32]) {
    each::<144, 256>(bytes, out, |b, o| {
        let (d, dmin, packed) = (le_f16(b), le_f16(&b[2..]), &b[4..16]);
        for (pair, o) in o.chunks_exact_mut(64).enumerate() {
            let qs = &b[16 + 32 * pair..][..32];
            let (low, high) = o.split_at_mut(32);
            for (half, o) in [low, high].into_iter().enumerate() {
                let (s, m) = k_scale_min(packed, 2 * pair + half);
                let (s, m) = (d * f32::from(s), dmin * f32::from(m));
                for j in 0..32 {
                    o[j] = s * f32::from(qs[j] >> (4 * half) & 15) - m;
                }
            }
        }
    });
}

pub(super) fn q5_k(bytes: &[u8], out: &mut [f32]) {
    each::<176, 256>(bytes, out, |b, o| {
        let (d, dmin, packed, high_bits) = (le_f16(b), le_f16(&b[2..]), &b[4..16], &b[16..48]);
        for (g, o) in o.chunks_exact_mut(32).enumerate() {
            let qs = &b[48 + 32 * (g / 2)..][..32];
            let (s, m) = k_scale_min(packed, g);
            let (s, m) = (d * f32::from(s), dmin * f32::from(m));
            for j in 0..32 {
                o[j] = s * f32::from(qs[j] >> (g % 2 * 4) & 15 | (high_bits[j] >> g & 1) << 4) - m;
            }
        }
    });
}

pub(super) fn q6_k(bytes: &[u8], out: &mut [f32]) {
    each::<210, 256>(bytes, out, |b, o| {
        let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], le_f16(&b[208..]));
        for (g, o) in o.chunks_exact_mut(16).enumerate() {
            let scale = d * f32::from(scales[g] as i8);
            // Each 128 elements are four runs of 32. Runs 0 and 2 share low bytes, as do runs 1 and 3.
            let (half, run, from) = (g / 8, g % 8 / 2, g % 2 * 16);
            for j in 0..16 {
                let l = low[half * 64 + run % 2 * 32 + from + j] >> (run / 2 * 4) & 15;
                let h = high[half * 32 + from + j] >> (run * 2) & 3;
                o[j] = scale * f32::from((l | h << 4) as i8 - 32);
            }
        }
    });
}

/// The table `kvalues_iq4nl` of ggml.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) fn iq4_nl(bytes: &[u8], out: &mut [f32]) {
    each::<18, 32>(bytes, out, |b, o| {
        let d = le_f16(b);
        for j in 0..16 {
            o[j] = d * f32::from(IQ4_NL[(b[2 + j] & 15) as usize]);
            o[j + 16] = d * f32::from(IQ4_NL[(b[2 + j] >> 4) as usize]);
        }
    });
}

/// The scale of group `g` (0–7) of a block of IQ4_XS, −32 to 31.
#[inline]
pub fn iq4_xs_scale(b: &[u8], g: usize) -> i8 {
    let (high, low) = (u16::from_le_bytes([b[2], b[3]]), b[4 + g / 2]);
    (low >> (g % 2 * 4) & 15) as i8 + ((high >> (2 * g) & 3) << 4) as i8 - 32
}

pub(super) fn iq4_xs(bytes: &[u8], out: &mut [f32]) {
    each::<136, 256>(bytes, out, |b, o| {
        for (g, o) in o.chunks_exact_mut(32).enumerate() {
            let (scale, codes) = (le_f16(b) * f32::from(iq4_xs_scale(b, g)), &b[8 + 16 * g..][..16]);
            for j in 0..16 {
                o[j] = scale * f32::from(IQ4_NL[(codes[j] & 15) as usize]);
                o[j + 16] = scale * f32::from(IQ4_NL[(codes[j] >> 4) as usize]);
            }
        }
    });
}

/// The values of E2M1, doubled.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn mxfp4(bytes: &[u8], out: &mut [f32]) {
    each::<17, 32>(bytes, out, |b, o| {
        // 2^(e − 127) / 2, to undo the doubling. The two smallest are subnormal.
        let half = f32::from_bits(match b[0] {
            e @ 0..=1 => 0x0020_0000 << e,
            e => (u32::from(e) - 1) << 23,
        });
        for j in 0..16 {
            o[j] = half * f32::from(E2M1_DOUBLED[(b[1 + j] & 15) as usize]);
            o[j + 16] = half * f32::from(E2M1_DOUBLED[(b[1 + j] >> 4) as usize]);
        }
    });
}
