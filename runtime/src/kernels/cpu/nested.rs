//! Products of nested matrices with activations in 8 bits.
//!
//! One algorithm for every instruction set: a row's planes are unpacked to one byte per code, once for all tokens in
//! hand, and each token's dot product runs over those bytes. Only [`unpack`] and [`dot`] differ between machines. The
//! order of the float operations of an output element is fixed by its instruction set alone: it is the same for one
//! token as for many, and for any number of threads, so that decoding repeats what a prefill would have computed.

use super::isa::{Isa, Kind};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::quant::Nested;
use half::f16;

/// Codes are unpacked and dotted in runs of this many, whatever the group.
pub(super) const RUN: usize = 64;

/// Activations of some tokens, quantized in groups.
#[derive(Default)]
pub(super) struct Activations {
    group: usize,
    /// Values per token in `q`: the columns, padded to whole runs with zeros.
    stride: usize,
    /// Groups per token, padded to whole runs with zero scales.
    groups: usize,
    q: Vec<i8>,
    scale: Vec<f32>,
    /// Scale times the sum of `q`.
    sum: Vec<f32>,
}

impl Activations {
    /// Quantizes `tokens` rows of `cols` values. The same rounding as `quant::QuantizedRow`.
    pub(super) fn quantize(&mut self, isa: Isa, x: &[f32], tokens: usize, cols: usize, group: usize) {
        self.group = group;
        self.stride = cols.next_multiple_of(RUN);
        self.groups = self.stride / group;
        // Shrinking and growing keeps the allocation; every value used is written below.
        self.q.resize(tokens * self.stride, 0);
        self.scale.resize(tokens * self.groups, 0.0);
        self.sum.resize(tokens * self.groups, 0.0);
        isa.run(
            #[inline(always)]
            || {
                for (t, x) in x[..tokens * cols].chunks_exact(cols).enumerate() {
                    let q = &mut self.q[t * self.stride..][..self.stride];
                    let scale = &mut self.scale[t * self.groups..][..self.groups];
                    let sum = &mut self.sum[t * self.groups..][..self.groups];
                    quantize_row(x, group, q, scale, sum);
                }
            },
        );
    }

    fn token(&self, t: usize) -> Token<'_> {
        Token {
            q: &self.q[t * self.stride..][..self.stride],
            scale: &self.scale[t * self.groups..][..self.groups],
            sum: &self.sum[t * self.groups..][..self.groups],
        }
    }
}

#[inline(always)]
fn quantize_row(x: &[f32], group: usize, q: &mut [i8], scale: &mut [f32], sum: &mut [f32]) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer, ties to even
    q[x.len()..].fill(0);
    scale.fill(0.0);
    sum.fill(0.0);
    for (g, x) in x.chunks(group).enumerate() {
        let max = x.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        let mut total = 0i32;
        for (q, x) in q[g * group..].iter_mut().zip(x) {
            let rounded = (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
            *q = rounded as i8;
            total += rounded;
        }
        scale[g] = max / 127.0;
        sum[g] = scale[g] * total as f32;
    }
}

/// One token's activations.
pub(super) struct Token<'a> {
    pub(super) q: &'a [i8],
    pub(super) scale: &'a [f32],
    sum: &'a [f32],
}

/// A row unpacked, with room for the longest row so far.
#[derive(Default)]
pub(super) struct Row {
    /// One byte per code, padded to whole runs with zeros.
    codes: Vec<u8>,
    /// `[groups]`.
    scale: Vec<f32>,
    /// Scale times (β/α − zero point), `[groups]`.
    centre: Vec<f32>,
}

/// `row · x_t` for each `t` of `tokens`, handed to `each` with its position in the list.
pub(super) fn row_times(
    isa: Isa,
    m: &Nested,
    row: usize,
    x: &Activations,
    tokens: &[u32],
    buffer: &mut Row,
    each: &mut dyn FnMut(usize, f32),
) {
    debug_assert_eq!(x.group, m.shape().group);
    buffer.read(isa, m, row, x.groups, x.stride);
    let (fit, shift) = (m.fit(), (1u32 << m.level().shift()) as f32);
    for (n, &t) in tokens.iter().enumerate() {
        let token = x.token(t as usize);
        let main = dot(isa, x.group, &buffer.codes, &buffer.scale, &token);
        let centre: f32 = sum_of_products(&buffer.centre, token.sum);
        each(n, fit.alpha * (main * shift + centre));
    }
}

#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (heads, tails) = (a.chunks_exact(8).zip(b.chunks_exact(8)), (a.len() / 8 * 8)..a.len());
    for (a, b) in heads {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    tails.map(|i| a[i] * b[i]).sum::<f32>() + lanes.iter().sum::<f32>()
}

impl Row {
    fn read(&mut self, isa: Isa, m: &Nested, row: usize, groups: usize, stride: usize) {
        let (shape, fit) = (m.shape(), m.fit());
        let own = shape.groups();
        self.scale.resize(groups, 0.0);
        self.centre.resize(groups, 0.0);
        self.scale[own..].fill(0.0);
        self.centre[own..].fill(0.0);
        let middle = fit.beta / fit.alpha + code_bias(isa, m);
        let scales = &m.scales()[2 * row * own..][..2 * own];
        let zeros = &m.zeros()[row * own..][..own];
        for (g, (bits, &zero)) in scales.chunks_exact(2).zip(zeros).enumerate() {
            let scale = f16::from_le_bytes([bits[0], bits[1]]).to_f32();
            self.scale[g] = scale;
            self.centre[g] = scale * (middle - f32::from(zero));
        }
        self.codes.resize(stride, 0);
        let planes: [&[u8]; 5] = std::array::from_fn(|p| {
            let bytes = shape.row_bytes(p);
            m.codes(p).get(row * bytes..(row + 1) * bytes).unwrap_or(&[])
        });
        let whole = shape.padded_cols() / RUN;
        for run in 0..whole {
            unpack(isa, shape.group, &planes, m.level().planes(), run, &mut self.codes[run * RUN..][..RUN]);
        }
        if whole * RUN < shape.padded_cols() {
            // Half a run (groups of 32, an odd number of them): unpack from a padded copy.
            let mut copies = [[0u8; 16]; 5];
            for (p, plane) in planes.iter().enumerate() {
                let from = whole * RUN * plane.len() / shape.padded_cols();
                copies[p][..plane.len() - from].copy_from_slice(&plane[from..]);
            }
            let padded: [&[u8]; 5] = std::array::from_fn(|p| &copies[p][..]);
            unpack(isa, shape.group, &padded, m.level().planes(), 0, &mut self.codes[whole * RUN..]);
        }
    }
}

/// Codes above 127 do not fit the signed dot product of some machines, which subtract 128; this is added back.
fn code_bias(isa: Isa, m: &Nested) -> f32 {
    match isa.kind() {
        #[cfg(target_arch = "aarch64")]
        Kind::Dotprod if m.level().bits() == 8 => 128.0,
        _ => {
            let _ = m;
            0.0
        }
    }
}

/// Run `run` (64 weights) of a row, one byte per code. `planes` are the row's bytes.
fn unpack(isa: Isa, group: usize, planes: &[&[u8]; 5], n: usize, run: usize, out: &mut [u8]) {
    let out: &mut [u8; RUN] = out.try_into().expect("a whole run");
    match isa.kind() {
        Kind::Scalar => scalar::unpack(group, planes, n, run, out),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::unpack_avx2(isa, group, planes, n, run, out),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => x86::unpack_avx512(isa, group, planes, n, run, out),
        #[cfg(target_arch = "aarch64")]
        Kind::Dotprod => neon::unpack(group, planes, n, run, out),
    }
}

/// `Σ_g scale_g · x.scale_g · Σ codes · q`.
fn dot(isa: Isa, group: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    match isa.kind() {
        Kind::Scalar => scalar::dot(group, codes, scale, x),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::dot_avx2(isa, group, codes, scale, x),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => x86::dot_avx512(isa, group, codes, scale, x),
        #[cfg(target_arch = "aarch64")]
        Kind::Dotprod => neon::dot(isa, group, codes, scale, x),
    }
}
