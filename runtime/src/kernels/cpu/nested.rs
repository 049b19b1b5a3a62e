//! Products of nested matrices with 8-bit activations.
//!
//! One algorithm for every instruction set: a tile (16 rows) is computed group by group. A group's planes are
//! merged to one byte per code, once for all current tokens. For each token we then add the scaled integer
//! dot products, one per row. Only a kernel's `tile_times` differs between machines. The order of the float
//! operations of an output element depends only on the instruction set, not on the number of tokens or
//! threads. So decoding gives the bits of a prefill.

use super::activations::Activations;
#[cfg(target_arch = "x86_64")]
use super::halves::Halves;
use super::isa::{Isa, Kind};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
use super::tiles::Tiles;
#[cfg(target_arch = "x86_64")]
use super::tiles::{Sums, TOKEN_BLOCK};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::quant::TILE_ROWS;

/// Products of a tile's rows with the tokens from `first` on, one for each of `sums`, which must be zero:
/// `sums[n][r] = row r · token first + n`.
pub(super) fn times(
    isa: Isa,
    m: &Tiles,
    tile: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; TILE_ROWS]],
) {
    let t = m.at(tile);
    assert!(m.fit(x, first, sums.len()), "activations that do not fit the matrix");
    match isa.kind() {
        Kind::Scalar => scalar::tile_times(&t, x, first, sums),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::tile_times(isa, &t, x, first, sums),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Amx => avx512::tile_times(isa, [&t], x, first, [&mut *sums]),
        #[cfg(target_arch = "aarch64")]
        Kind::Dotprod | Kind::I8mm => neon::tile_times(isa, &t, x, first, sums),
    }
    sums.iter_mut().flatten().for_each(|sum| *sum *= t.alpha);
}

/// The same for two matrices of one shape and level, or for two tiles of one matrix. Some instruction sets
/// compute both together.
#[inline(always)]
pub(super) fn times_two(
    isa: Isa,
    m: [(&Tiles, usize); 2],
    x: &Activations,
    first: usize,
    sums: [&mut [[f32; TILE_ROWS]]; 2],
) {
    let [a, b] = sums;
    #[cfg(target_arch = "x86_64")]
    if matches!(isa.kind(), Kind::Avx512 | Kind::Amx) {
        let [t, u] = m.map(|(m, tile)| m.at(tile));
        assert!(
            m[0].0.fit(x, first, a.len()) && m[0].0.alike(m[1].0) && a.len() == b.len(),
            "activations or matrices that do not fit"
        );
        avx512::tile_times(isa, [&t, &u], x, first, [&mut *a, &mut *b]);
        a.iter_mut().flatten().for_each(|sum| *sum *= t.alpha);
        return b.iter_mut().flatten().for_each(|sum| *sum *= u.alpha);
    }
    times(isa, m[0].0, m[0].1, x, first, a);
    times(isa, m[1].0, m[1].1, x, first, b);
}

/// Products of two tiles of one shape with tokens `first..first + tokens` in bfloat16; the first `tokens` rows of `sums`
/// are written.
#[cfg(target_arch = "x86_64")]
pub(super) fn pair_times(
    isa: Isa,
    m: [(&Tiles, usize); 2],
    x: &Halves,
    (first, tokens): (usize, usize),
    sums: &mut [Sums; 2],
) {
    let [a, b] = m.map(|(m, tile)| m.at(tile));
    assert!(
        m[0].0.alike(m[1].0) && x.has(m[0].0.cols, first, tokens) && tokens <= TOKEN_BLOCK,
        "activations or matrices that do not fit"
    );
    avx512::pair_times(isa, [&a, &b], x, (first, tokens), sums);
}
