//! Unpacking and dot products without special instructions: what every other instruction set must agree with.

use super::nested::{RUN, Token};
use crate::quant::PLANE_BITS;

/// One byte per code of run `run`.
pub(super) fn unpack(group: usize, planes: &[&[u8]; 5], n: usize, run: usize, out: &mut [u8; RUN]) {
    out.fill(0);
    for (plane, bits) in planes[..n].iter().zip(PLANE_BITS) {
        let bytes = &plane[run * RUN * bits as usize / 8..][..RUN * bits as usize / 8];
        if bits == 2 {
            let quarter = group / 4;
            for (out, bytes) in out.chunks_exact_mut(group).zip(bytes.chunks_exact(quarter)) {
                for (k, out) in out.chunks_exact_mut(quarter).enumerate() {
                    for (code, byte) in out.iter_mut().zip(bytes) {
                        *code = *code << 2 | byte >> (2 * k) & 3;
                    }
                }
            }
        } else {
            for (out, byte) in out.chunks_exact_mut(8).zip(bytes) {
                for (i, code) in out.iter_mut().enumerate() {
                    *code = *code << 1 | byte >> i & 1;
                }
            }
        }
    }
}

/// `Σ_g scale_g · x.scale_g · Σ codes · q`, groups in order.
pub(super) fn dot(group: usize, codes: &[u8], scale: &[f32], x: &Token) -> f32 {
    let groups = codes.chunks_exact(group).zip(x.q.chunks_exact(group));
    let mut sum = 0.0;
    for ((codes, q), (s, a)) in groups.zip(scale.iter().zip(x.scale)) {
        let dot: i32 = codes.iter().zip(q).map(|(&c, &q)| i32::from(c) * i32::from(q)).sum();
        sum += s * a * dot as f32;
    }
    sum
}
