//! Import of matrices that already have uniform codes in groups of 32: the codes are kept instead of fitted again.
//!
//! A Q4_0 weight `d·(q − 8)` is code `16q + 8` with scale `d/16` and zero point 136, at 8 bits and at 4 bits. A
//! Q8_0 weight `d·q` is code `q + 128` with scale `d` and zero point 128. Types with a minimum (Q4_1, Q5_1, Q4_K,
//! Q5_K) lose only the rounding of the minimum to an 8-bit step. A group whose minimum or scale cannot be
//! represented is encoded like any other.
//!
//! Table codes (MXFP4, IQ4_NL, IQ4_XS) are kept as ranks of their values, with unchanged scales.

use super::encode::{best_instructions, encode_group, fits_row, unsound};
use super::encoded::EncodedRows;
use super::search::{Anchor, Effort, MAX_WEIGHT};
use super::table::Table;
use super::{GroupParams, Level, MXFP4_LEAST, Shape};
use crate::error::Result;
use crate::format::GgmlType;
use crate::format::ggml::{iq4_xs_scale, k_scale_min, le_f16};
use half::f16;

/// The group parameters for matrices of this type, if its codes are kept.
pub fn kept(ty: GgmlType) -> Option<GroupParams> {
    use GgmlType::*;
    match ty {
        Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q4_K | Q5_K => Some(GroupParams::Wide),
        MXFP4 => Some(GroupParams::Mxfp4),
        IQ4_NL => Some(GroupParams::Iq4Nl),
        IQ4_XS => Some(GroupParams::Iq4Xs),
        F32 | F16 | BF16 | Q2_K | Q3_K | Q6_K | I8 | I32 => None,
    }
}

/// One group of 32 in the source: `w = scale · code − min`, with codes of `bits` bits.
struct Uniform {
    bits: u32,
    codes: [u8; 32],
    scale: f32,
    min: f32,
}

/// Encodes whole rows of `ty` blocks, keeping their codes. Groups must be of 32, with the parameters of
/// [`kept`]. `importance` (`[cols]`) weights the fits of the levels. `lift` (a power of two) multiplies the
/// weights of matrices that are too small for f16 scales; matrices with a table are never multiplied.
///
/// # Errors
/// `Malformed` if a scale is not finite, or a weight is too large.
pub fn keep_rows(
    shape: Shape,
    first_row: usize,
    ty: GgmlType,
    raw: &[u8],
    importance: Option<&[f32]>,
    max: Level,
    lift: f32,
) -> Result<EncodedRows> {
    assert!(kept(ty) == Some(shape.params) && shape.group == 32 && shape.cols.is_multiple_of(ty.block_len()));
    best_instructions(
        #[inline(always)]
        || {
            let per_row = shape.cols / ty.block_len();
            let mut out = EncodedRows::new(shape, raw.len() / ty.block_bytes() / per_row, max);
            let groups = ty.block_len() / 32;
            for (i, block) in raw.chunks_exact(ty.block_bytes()).enumerate() {
                let row = first_row + i / per_row;
                for g in 0..groups {
                    let at = 32 * (i % per_row * groups + g);
                    let importance = importance.map(|v| &v[at..at + 32]);
                    if let Some(table) = shape.params.table() {
                        keep_table(table, shape, row, (block, g), importance, &mut out)?;
                        continue;
                    }
                    let mut group = read_group(ty, block, g);
                    (group.scale, group.min) = (group.scale * lift, group.min * lift);
                    keep_group(shape, row, &group, importance, &mut out)?;
                }
            }
            Ok(out.finish())
        },
    )
}

#[inline(always)]
fn keep_group(
    shape: Shape,
    row: usize,
    u: &Uniform,
    importance: Option<&[f32]>,
    out: &mut EncodedRows,
) -> Result<()> {
    // Code `q` of b bits becomes the middle (rounded up) of its 8-bit cell, so that level b and level 8 agree exactly.
    let (shift, middle) = (8 - u.bits, (1u32 << (8 - u.bits)) >> 1);
    let flip = u.scale < 0.0;
    let top = (1u32 << u.bits) - 1;
    let (scale, min) = if flip { (-u.scale, u.min - u.scale * top as f32) } else { (u.scale, u.min) };
    let step = f16::from_f32(scale / (1u32 << shift) as f32);
    let zero = if step == f16::ZERO { f32::NAN } else { (min / step.to_f32() + middle as f32).round() };
    if !(step.is_finite() && step.is_normal() && (0.0..=255.0).contains(&zero)) {
        let w: Vec<f32> = u.codes.iter().map(|&q| u.scale * f32::from(q) - u.min).collect();
        return encode_group(row, &w, importance, (Anchor::Nested, Effort::Quick), fits_row(shape, row), out);
    }
    let zero = zero as u8;
    let mut codes = [0u8; 32];
    // With a negative scale codes count downwards: code q becomes top − q.
    let (start, sign) = if flip { (top as u8, u8::MAX) } else { (0, 1) };
    for (code, &q) in codes.iter_mut().zip(&u.codes) {
        *code = (start.wrapping_add(q.wrapping_mul(sign)) << shift) + middle as u8;
    }
    out.push_group(&codes, step.to_f32(), zero);
    out.largest = out.largest.max(min.abs().max((scale * top as f32 - min).abs()));
    if fits_row(shape, row) {
        let inverse = 1.0 / step.to_f32();
        let x: [f32; 32] =
            std::array::from_fn(|i| (u.scale * f32::from(u.codes[i]) - u.min) * inverse + f32::from(zero));
        out.sums.add_group(&x, &codes, zero, step.to_f32(), importance);
    }
    Ok(())
}

/// Group `g` of a block with table codes.
#[inline(always)]
fn keep_table(
    table: &Table,
    shape: Shape,
    row: usize,
    (block, g): (&[u8], usize),
    importance: Option<&[f32]>,
    out: &mut EncodedRows,
) -> Result<()> {
    // The stored part of the scale, and the scale.
    let ((stored, zero), scale, codes) = match shape.params {
        GroupParams::Mxfp4 => {
            let scale = f32::from_bits((u32::from(block[0]) << 23).max(MXFP4_LEAST));
            ((scale, table.zero), scale, &block[1..])
        }
        GroupParams::Iq4Xs => {
            let (shared, own) = (le_f16(block), iq4_xs_scale(block, g));
            ((shared, own as u8), shared * f32::from(own), &block[8 + 16 * g..])
        }
        _ => ((le_f16(block), table.zero), le_f16(block), &block[2..]),
    };
    let ranks = nibbles(codes).map(|i| table.rank(i));
    let most = ranks.iter().map(|&rank| table.value(Level::B4, rank).abs()).fold(0.0, f32::max);
    let largest = most * table.unit() * scale.abs();
    if !largest.is_finite() || largest > MAX_WEIGHT {
        return Err(unsound(row));
    }
    out.push_group(&ranks.map(|rank| rank << 4), stored, zero);
    out.largest = out.largest.max(largest);
    if fits_row(shape, row) {
        out.sums.add_table(table, &ranks, scale, importance);
    }
    Ok(())
}

#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| bytes[i % 16] >> (i / 16 * 4) & 15)
}

#[inline(always)]
fn read_group(ty: GgmlType, b: &[u8], g: usize) -> Uniform {
    let fifth = |bits: &[u8], i: usize| (bits[i / 8] >> (i % 8) & 1) << 4;
    match ty {
        GgmlType::Q4_0 => {
            Uniform { bits: 4, codes: nibbles(&b[2..]), scale: le_f16(b), min: 8.0 * le_f16(b) }
        }
        GgmlType::Q4_1 => {
            Uniform { bits: 4, codes: nibbles(&b[4..]), scale: le_f16(b), min: -le_f16(&b[2..]) }
        }
        GgmlType::Q5_0 => {
            let low = nibbles(&b[6..]);
            let codes = std::array::from_fn(|i| low[i] | fifth(&b[2..6], i));
            Uniform { bits: 5, codes, scale: le_f16(b), min: 16.0 * le_f16(b) }
        }
        GgmlType::Q5_1 => {
            let low = nibbles(&b[8..]);
            let codes = std::array::from_fn(|i| low[i] | fifth(&b[4..8], i));
            Uniform { bits: 5, codes, scale: le_f16(b), min: -le_f16(&b[2..]) }
        }
        GgmlType::Q8_0 => {
            let codes = std::array::from_fn(|i| b[2 + i] ^ 0x80);
            Uniform { bits: 8, codes, scale: le_f16(b), min: 128.0 * le_f16(b) }
        }
        _ => {
            let (s, m) = k_scale_min(&b[4..16], g);
            let five = ty == GgmlType::Q5_K;
            let qs = &b[if five { 48 } else { 16 } + 32 * (g / 2)..][..32];
            let codes = std::array::from_fn(|i| {
                let low = qs[i] >> (g % 2 * 4) & 15;
                if five { low | (b[16 + i] >> g & 1) << 4 } else { low }
            });
            let scale = le_f16(b) * f32::from(s);
            Uniform { bits: if five { 5 } else { 4 }, codes, scale, min: le_f16(&b[2..]) * f32::from(m) }
        }
    }
}
