//! Tiles of nested matrices (16 rows), as kernels read them, and the kernels' sums.

use super::activations::Activations;
use crate::quant::{GroupParams, Nested, TILE_ROWS};

/// One tile of a matrix, as kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Codes of each plane, empty above the level.
    pub(super) planes: [&'a [u8]; 5],
    /// How scales and zero points are stored.
    pub(super) params: GroupParams,
    /// `[groups]` times [`GroupParams::scale_bytes`].
    pub(super) scales: &'a [u8],
    /// `[groups]` times [`GroupParams::zero_bytes`].
    pub(super) zeros: &'a [u8],
    /// Groups of a row.
    pub(super) groups: usize,
    /// Weights a group: 32 or 64.
    pub(super) group: usize,
    /// A factor of all products, applied at the end.
    pub(super) alpha: f32,
    /// β/α: the offset of a code's value, the same for all codes.
    pub(super) middle: f32,
    /// The factor from this level's codes to 8-bit codes. Table codes are looked up instead.
    pub(super) step: f32,
    /// For table codes: the entries of this level, and whether they have at most 6 bits.
    pub(super) table: Option<(&'static [u8; 16], bool)>,
    /// Number of planes.
    pub(super) level: usize,
}

/// A matrix as a source of tiles. Its parts are located once, not for every tile.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    /// All tiles, as one tile.
    all: Tile<'a>,
    /// Columns.
    pub(super) cols: usize,
    /// Bytes of a tile in each plane of the level.
    bytes: [usize; 5],
}

impl<'a> Tiles<'a> {
    pub(super) fn new(m: &'a Nested) -> Tiles<'a> {
        let (shape, fit, level) = (m.shape(), m.fit(), m.level());
        let table = shape.params.table();
        Tiles {
            all: Tile {
                planes: std::array::from_fn(|p| m.codes(p)),
                params: shape.params,
                scales: m.scales(),
                zeros: m.zeros(),
                groups: shape.groups(),
                group: shape.group,
                alpha: fit.alpha,
                middle: fit.beta / fit.alpha,
                step: if table.is_some() { 1.0 } else { (1u32 << level.shift()) as f32 },
                table: table.map(|table| (table.entries(level), table.is_short())),
                level: level.planes(),
            },
            cols: shape.cols,
            bytes: std::array::from_fn(|p| if p < level.planes() { shape.tile_bytes(p) } else { 0 }),
        }
    }

    /// Whether tokens `first..first + tokens` exist, with the groups that these tiles need.
    pub(super) fn fit(&self, x: &Activations, first: usize, tokens: usize) -> bool {
        x.has(self.all.group, self.all.groups, first, tokens)
    }

    /// Whether tiles of both matrices can be computed together.
    pub(super) fn alike(&self, other: &Tiles) -> bool {
        let key = |t: &Tiles| (t.all.group, t.all.level, t.all.params, t.cols);
        key(self) == key(other)
    }

    /// One tile.
    #[inline(always)]
    pub(super) fn at(&self, tile: usize) -> Tile<'a> {
        let all = &self.all;
        let (scales, zeros) = (all.groups * all.params.scale_bytes(), all.groups * all.params.zero_bytes());
        Tile {
            planes: std::array::from_fn(|p| &all.planes[p][tile * self.bytes[p]..][..self.bytes[p]]),
            scales: &all.scales[tile * scales..][..scales],
            zeros: &all.zeros[tile * zeros..][..zeros],
            ..*all
        }
    }
}

/// Tokens per block of a product. Their activations stay in the L2 cache from one tile to the next; merging a
/// tile's planes again for each block costs little compared with the products.
pub(super) const TOKEN_BLOCK: usize = 128;

/// Sums of a tile's rows for a block of tokens. Each token's sums are one cache line.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[f32; TILE_ROWS]; TOKEN_BLOCK]);

impl Sums {
    /// Memory for a block's sums.
    pub(super) fn new() -> Self {
        Sums([[0.0; TILE_ROWS]; TOKEN_BLOCK])
    }

    /// `tokens` sums, set to zero.
    #[inline(always)]
    pub(super) fn cleared(&mut self, tokens: usize) -> &mut [[f32; TILE_ROWS]] {
        let sums = &mut self.0[..tokens];
        sums.fill([0.0; TILE_ROWS]);
        sums
    }
}
