//! Products of several tokens with NEON: a group is unpacked to the stack and multiplied with four tokens at a time.

use super::{Core, Params, add_group, codes, entries, params};
use crate::kernels::cpu::activations::{Activations, SPARE_TOKENS};
use crate::kernels::cpu::tiles::Tile;
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTORS};
use std::arch::aarch64::*;

/// Tokens per block. Their sums take sixteen of 32 registers, and a register of codes is used for all of them.
const BLOCK: usize = 4;

const _: () = assert!(BLOCK <= SPARE_TOKENS + 1);

/// The codes of a unit, in the order in which a [`Core`] reads them.
pub(super) type Unit = [uint8x16_t; 4 * VECTORS];

/// The codes of a group's units.
pub(super) type Group = [Unit; 2];

/// The integer sums of T tokens, for a tile's rows four by four.
pub(super) type Dots<const T: usize> = [[int32x4_t; 4]; T];

/// Several tokens.
///
/// # Safety
/// As [`super::times`].
#[inline(always)]
pub(super) unsafe fn many<C: Core, const N: usize, const K: usize, const UNITS: usize>(
    t: &Tile,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let planes = t.planes.map(<[u8]>::as_ptr);
    // SAFETY: as in `super::one`, for every token; a group is complete before it is used, and tokens beyond the last are
    // spare.
    unsafe {
        let table = entries(t);
        let mut group: Group = [[vdupq_n_u8(0); 4 * VECTORS]; 2];
        for g in 0..t.groups {
            for (u, unit) in group[..UNITS].iter_mut().enumerate() {
                for r in 0..4 {
                    C::put(unit, r, codes::<C, N, K>(&planes, table, g * UNITS + u, 4 * r));
                }
            }
            group_times::<C, UNITS>((&group, &params(t, g)), x, g, first, sums);
        }
    }
}

/// A group times the tokens from `first` on. Not inlined: its inputs are in memory, and all levels share it.
///
/// # Safety
/// The machine has the instructions of `C`; `x` has group g, the tokens, and BLOCK − 1 beyond the last.
#[inline(never)]
unsafe fn group_times<C: Core, const UNITS: usize>(
    group: (&Group, &Params),
    x: &Activations,
    g: usize,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let (q, a, sum) = x.group(g);
    let from = |n: usize| (&q[n * UNITS * UNIT_COLS..], &a[n..], &sum[n..]);
    // SAFETY: the caller guarantees it.
    unsafe {
        let (mut n, mut blocks) = (first, sums.chunks_exact_mut(BLOCK));
        for sums in blocks.by_ref() {
            block::<C, UNITS, BLOCK>(group, from(n), sums);
            n += BLOCK;
        }
        match blocks.into_remainder() {
            [] => {}
            sums @ ([_] | [_, _]) => block::<C, UNITS, 2>(group, from(n), sums),
            sums => block::<C, UNITS, BLOCK>(group, from(n), sums),
        }
    }
}

/// A group times T tokens, of which as many count as there are sums.
///
/// # Safety
/// The machine has the instructions of `C`; `x` has codes, scales and sums of activations for T tokens.
#[inline(always)]
unsafe fn block<C: Core, const UNITS: usize, const T: usize>(
    (codes, params): (&Group, &Params),
    (q, a, sum): (&[i8], &[f32], &[f32]),
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        let dots = C::dots::<UNITS, T>(codes, q.as_ptr());
        for (n, dots) in dots.into_iter().enumerate() {
            let Some(sums) = sums.get_mut(n) else { break };
            let (a, sum) = (*a.get_unchecked(n), *sum.get_unchecked(n));
            for (r, (p, dot)) in params.iter().zip(dots).enumerate() {
                let to = sums.as_mut_ptr().add(4 * r);
                vst1q_f32(to, add_group(*p, dot, a, sum, vld1q_f32(to)));
            }
        }
    }
}
