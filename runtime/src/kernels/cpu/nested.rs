//! Products of nested matrices with activations in 8 bits.
//!
//! One algorithm for every instruction set: a tile (16 rows) is taken group by group; a group's planes are merged to
//! one byte per code once for all tokens in hand, and each token adds its integer dot products, one per row, scaled.
//! Only [`tile_times`] differs between machines. The order of the float operations of an output element is fixed by its
//! instruction set alone: it is the same for one token as for many, and for any number of threads, so that decoding
//! repeats what a prefill would have computed.

use super::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use super::halves::Halves;
use super::isa::{Isa, Kind};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::quant::{Nested, TILE_ROWS};

/// Kernels that take a block of tokens may read this many beyond the last: memory that is there, whatever is in it.
pub(super) const SPARE_TOKENS: usize = 15;

/// Activations of some tokens, quantized in groups. Group-major: a product visits all its tokens for one group.
#[derive(Default)]
pub(super) struct Activations {
    group: usize,
    groups: usize,
    tokens: usize,
    /// Tokens from one group to the next.
    stride: usize,
    /// `[groups, stride, group]`, a last partial group padded with zeros; then SPARE_TOKENS.
    q: Aligned<i8>,
    /// `[groups, stride]`; then SPARE_TOKENS.
    scale: Aligned<f32>,
    /// Scale times the sum of `q`, as `scale`.
    sum: Aligned<f32>,
}

/// The distance between groups for so many tokens: an odd number of sixteens. A power of two would put the groups of a
/// block of tokens in the same few sets of a cache.
fn stride(tokens: usize) -> usize {
    if tokens < 16 { tokens } else { (tokens.div_ceil(16) | 1) * 16 }
}

impl Activations {
    /// Makes room for `tokens` rows of `cols` values. Memory never shrinks.
    pub(super) fn reserve(&mut self, tokens: usize, cols: usize, group: usize) {
        (self.group, self.groups, self.tokens) = (group, cols.div_ceil(group), tokens);
        self.stride = stride(tokens);
        let params = self.groups * self.stride + SPARE_TOKENS;
        self.q.reserve(params * group);
        self.scale.reserve(params);
        self.sum.reserve(params);
    }

    /// Bytes that [`Activations::reserve`] takes.
    pub(super) fn bytes(tokens: usize, cols: usize, group: usize) -> usize {
        let params = cols.div_ceil(group) * stride(tokens) + SPARE_TOKENS;
        Aligned::<i8>::bytes(params * group) + 2 * Aligned::<f32>::bytes(params)
    }

    /// Groups of a token.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.q.held() + self.scale.held() + self.sum.held()
    }

    /// The parts of the groups, in order.
    pub(super) fn parts(&mut self) -> impl Iterator<Item = Part<'_>> {
        let (stride, tokens, group) = (self.stride.max(1), self.tokens, self.group);
        let params = self.scale.chunks_exact_mut(stride).zip(self.sum.chunks_exact_mut(stride));
        let q = self.q.chunks_exact_mut(stride * group.max(1)).take(self.groups);
        q.zip(params).map(move |(q, (scale, sum))| Part {
            q: &mut q[..tokens * group],
            scale: &mut scale[..tokens],
            sum: &mut sum[..tokens],
        })
    }

    /// Group `g` of all tokens: codes, scales, sums. Each goes on for SPARE_TOKENS more.
    #[inline(always)]
    pub(super) fn group(&self, g: usize) -> (&[i8], &[f32], &[f32]) {
        let (at, n) = (g * self.stride, self.tokens + SPARE_TOKENS);
        (&self.q[at * self.group..][..n * self.group], &self.scale[at..][..n], &self.sum[at..][..n])
    }
}

/// One group of all tokens, to be written.
pub(super) struct Part<'a> {
    q: &'a mut [i8],
    scale: &'a mut [f32],
    sum: &'a mut [f32],
}

impl Part<'_> {
    /// Quantizes group `g` of token `t`, which is `x`. The same rounding as `quant::QuantizedRow`.
    #[inline(always)]
    pub(super) fn quantize(&mut self, t: usize, x: &[f32], g: usize, group: usize) {
        let x = &x[g * group..(g * group + group).min(x.len())];
        let q = &mut self.q[t * group..][..group];
        (self.scale[t], self.sum[t]) = if group == 64 && x.len() == 64 {
            let x: &[f32; 64] = x.try_into().expect("64 values");
            quantize(x, q.try_into().expect("64 codes"))
        } else if group == 32 && x.len() == 32 {
            let x: &[f32; 32] = x.try_into().expect("32 values");
            quantize(x, q.try_into().expect("32 codes"))
        } else {
            let (mut values, mut codes) = ([0.0; 64], [0; 64]);
            values[..x.len()].copy_from_slice(x);
            let params = quantize(&values, &mut codes);
            q.copy_from_slice(&codes[..group]);
            params
        };
    }

    /// Copies group `g` of the named tokens of `from`, in their order.
    pub(super) fn gather(&mut self, from: &Activations, g: usize, tokens: &[u32]) {
        let (q, scale, sum) = from.group(g);
        match from.group {
            // Known here, a copy is a move or two instead of a call.
            32 => copy_rows::<32>(self.q, q, tokens),
            _ => copy_rows::<64>(self.q, q, tokens),
        }
        for (i, &t) in tokens.iter().enumerate() {
            (self.scale[i], self.sum[i]) = (scale[t as usize], sum[t as usize]);
        }
    }
}

/// Row `tokens[i]` of `from` as row i of `to`.
fn copy_rows<const N: usize>(to: &mut [i8], from: &[i8], tokens: &[u32]) {
    let (to, from) = (to.as_chunks_mut::<N>().0, from.as_chunks::<N>().0);
    to.iter_mut().zip(tokens).for_each(|(to, &t)| *to = from[t as usize]);
}

#[inline(always)]
fn quantize<const N: usize>(x: &[f32; N], q: &mut [i8; N]) -> (f32, f32) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer, ties to even
    // Flat loops over integers, which may be summed in any order: compilers turn loops over lanes into gathers. Magnitudes
    // compare as their bits do. A fold: `max` begins with the first of them, and what is left is no whole register.
    let max = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.abs().to_bits())));
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let rounded = x.map(|x| (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32);
    *q = rounded.map(|r| r as i8);
    let scale = max / 127.0;
    (scale, scale * rounded.iter().sum::<i32>() as f32)
}

/// One tile of a matrix, as its kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Codes of each plane, empty above the level.
    pub(super) planes: [&'a [u8]; 5],
    /// f16 scales, `[groups, 16]`.
    pub(super) scales: &'a [u8],
    /// `[groups, 16]`.
    pub(super) zeros: &'a [u8],
    /// Weights a group: 32 or 64.
    pub(super) group: usize,
    /// What all products are multiplied by in the end.
    pub(super) alpha: f32,
    /// β/α: what a code stands for beside its own value.
    pub(super) middle: f32,
    /// Codes of this level times this are codes of 8 bits.
    pub(super) step: f32,
    /// Number of planes.
    pub(super) level: usize,
}

/// A matrix that tiles are taken of: where its parts lie is found once, not for every tile.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    /// All tiles, as one.
    all: Tile<'a>,
    /// Columns.
    cols: usize,
    /// Bytes of a tile in each plane of the level.
    bytes: [usize; 5],
    /// Groups of a tile, times its rows.
    params: usize,
}

impl<'a> Tiles<'a> {
    pub(super) fn new(m: &'a Nested) -> Tiles<'a> {
        let (shape, fit, level) = (m.shape(), m.fit(), m.level());
        Tiles {
            all: Tile {
                planes: std::array::from_fn(|p| m.codes(p)),
                scales: m.scales(),
                zeros: m.zeros(),
                group: shape.group,
                alpha: fit.alpha,
                middle: fit.beta / fit.alpha,
                step: (1u32 << level.shift()) as f32,
                level: level.planes(),
            },
            cols: shape.cols,
            bytes: std::array::from_fn(|p| if p < level.planes() { shape.tile_bytes(p) } else { 0 }),
            params: shape.groups() * TILE_ROWS,
        }
    }

    /// Whether `tokens` tokens from `first` on are there, in the groups that tiles take.
    fn fit(&self, x: &Activations, first: usize, tokens: usize) -> bool {
        x.group == self.all.group
            && x.groups * TILE_ROWS == self.params
            && first.checked_add(tokens).is_some_and(|end| end <= x.tokens)
    }

    /// Whether tiles of both can be taken together.
    pub(super) fn alike(&self, other: &Tiles) -> bool {
        let key = |t: &Tiles| (t.all.group, t.all.level, t.cols, t.params);
        key(self) == key(other)
    }

    #[inline(always)]
    fn at(&self, tile: usize) -> Tile<'a> {
        let (all, params) = (&self.all, self.params);
        Tile {
            planes: std::array::from_fn(|p| &all.planes[p][tile * self.bytes[p]..][..self.bytes[p]]),
            scales: &all.scales[2 * tile * params..][..2 * params],
            zeros: &all.zeros[tile * params..][..params],
            ..*all
        }
    }
}

/// Tokens that tiles are multiplied with at a time: their activations stay in the second-level cache from one tile to
/// the next, and merging a tile's planes again for each block costs little beside the products.
pub(super) const TOKEN_BLOCK: usize = 128;

/// Sums of a tile's rows for a block of tokens, each token's in a cache line.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; TILE_ROWS]; TOKEN_BLOCK]);

impl Sums {
    /// Room for sums.
    pub(super) fn new() -> Self {
        Sums([[0.0; TILE_ROWS]; TOKEN_BLOCK])
    }

    /// So many, zeros.
    #[inline(always)]
    pub(super) fn cleared(&mut self, tokens: usize) -> &mut [[f32; TILE_ROWS]] {
        let sums = &mut self.0[..tokens];
        sums.fill([0.0; TILE_ROWS]);
        sums
    }
}

/// Products of a tile's rows with the tokens `first..`, one for each of `sums`, which are zeros:
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

/// The same of two matrices of one shape and level, or of two tiles of one. Some instruction sets take them together.
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
