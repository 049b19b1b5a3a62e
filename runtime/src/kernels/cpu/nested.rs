//! Products of nested matrices with activations in 8 bits.
//!
//! One algorithm for every instruction set: a tile (16 rows) is taken group by group; a group's planes are merged to
//! one byte per code once for all tokens in hand, and each token adds its integer dot products, one per row, scaled.
//! Only [`tile_times`] differs between machines. The order of the float operations of an output element is fixed by its
//! instruction set alone: it is the same for one token as for many, and for any number of threads, so that decoding
//! repeats what a prefill would have computed.

#[cfg(target_arch = "x86_64")]
use super::halves::Halves;
use super::isa::{Isa, Kind};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::scalar;
use super::scratch::grow;
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
    q: Vec<i8>,
    /// `[groups, stride]`; then SPARE_TOKENS.
    scale: Vec<f32>,
    /// Scale times the sum of `q`, as `scale`.
    sum: Vec<f32>,
}

/// The distance between groups for so many tokens: an odd number of sixteens. A power of two would put the groups of a
/// block of tokens in the same few sets of a cache.
fn stride(tokens: usize) -> usize {
    if tokens < 16 { tokens } else { (tokens.div_ceil(16) | 1) * 16 }
}

impl Activations {
    /// Makes room for `tokens` rows of `cols` values. Shrinking and growing keeps the allocation.
    pub(super) fn reserve(&mut self, tokens: usize, cols: usize, group: usize) {
        (self.group, self.groups, self.tokens) = (group, cols.div_ceil(group), tokens);
        self.stride = stride(tokens);
        let params = self.groups * self.stride + SPARE_TOKENS;
        grow(&mut self.q, params * group);
        grow(&mut self.scale, params);
        grow(&mut self.sum, params);
    }

    /// Bytes that [`Activations::reserve`] takes.
    pub(super) fn bytes(tokens: usize, cols: usize, group: usize) -> usize {
        (cols.div_ceil(group) * stride(tokens) + SPARE_TOKENS) * (group + 8)
    }

    /// Groups of a token.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.q.capacity() + 4 * (self.scale.capacity() + self.sum.capacity())
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
        for (i, (to, &t)) in self.q.chunks_exact_mut(from.group).zip(tokens).enumerate() {
            let t = t as usize;
            to.copy_from_slice(&q[t * from.group..][..from.group]);
            (self.scale[i], self.sum[i]) = (scale[t], sum[t]);
        }
    }
}

#[inline(always)]
fn quantize<const N: usize>(x: &[f32; N], q: &mut [i8; N]) -> (f32, f32) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer, ties to even
    // Flat loops over integers, which may be summed in any order: compilers turn loops over lanes into gathers. Magnitudes
    // compare as their bits do.
    let max = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0));
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
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AMX reads it"))]
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
    assert!(
        x.group == t.group
            && x.groups * TILE_ROWS == t.zeros.len()
            && first.checked_add(sums.len()).is_some_and(|end| end <= x.tokens),
        "activations that do not fit the matrix"
    );
    match isa.kind() {
        Kind::Scalar => scalar::tile_times(&t, x, first, sums),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::tile_times(isa, &t, x, first, sums),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Amx => avx512::tile_times(isa, &t, x, first, sums),
        #[cfg(target_arch = "aarch64")]
        Kind::Dotprod | Kind::I8mm => neon::tile_times(isa, &t, x, first, sums),
    }
    sums.iter_mut().flatten().for_each(|sum| *sum *= t.alpha);
}

/// Tokens that a pair of tiles is multiplied with at a time in bfloat16.
#[cfg(target_arch = "x86_64")]
pub(super) const TOKEN_BLOCK: usize = 128;

/// Sums of a pair of tiles, `[tokens, rows]` each.
#[cfg(target_arch = "x86_64")]
pub(super) type Sums = avx512::Sums<TOKEN_BLOCK>;

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
        a.group == b.group
            && a.zeros.len() == b.zeros.len()
            && a.level == b.level
            && x.has(m[0].0.cols, first, tokens)
            && tokens <= TOKEN_BLOCK,
        "activations or matrices that do not fit"
    );
    avx512::pair_times(isa, [&a, &b], x, (first, tokens), sums);
}
