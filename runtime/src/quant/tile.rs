//! A single tile of a nested matrix: the location of its pieces in the matrix's planes, and the dequantization of its
//! rows. Used for reading a few rows of a matrix that is not in memory. Pure arithmetic; other code does the reading.

use super::{Fit, Level, Nested, PLANE_BITS, PLANES, Shape, TILE_ROWS, UNIT_COLS, unit_bytes};
use std::ops::Range;

/// The common properties of a matrix's tiles. A tile's bytes are those of a matrix with 16 rows: plane after
/// plane, codes, and in the first plane scales and zero points.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    whole: Shape,
    level: Level,
    fit: Fit,
}

impl Tile {
    /// The tiles of a matrix.
    pub fn of(matrix: &Nested) -> Tile {
        Tile { whole: matrix.shape(), level: matrix.level(), fit: matrix.fit() }
    }

    fn shape(&self) -> Shape {
        Shape { rows: TILE_ROWS, ..self.whole }
    }

    /// Rows and columns of the whole matrix.
    pub fn matrix(&self) -> Shape {
        self.whole
    }

    /// Bytes of a tile.
    pub fn bytes(&self) -> usize {
        (0..self.level.planes()).map(|p| self.shape().plane(p).len).sum()
    }

    /// The pieces of tile `index`: their offsets from the beginning of the matrix's planes, which follow one
    /// another, and their ranges in the tile's bytes.
    pub fn pieces(self, index: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (mut from, mut to) = (0, 0);
        (0..self.level.planes()).flat_map(move |p| {
            let (whole, tile) = (self.whole.plane(p), self.shape().plane(p));
            let (matrix, at) = (from, to);
            (from, to) = (from + whole.len, to + tile.len);
            let parts = [(whole.codes, tile.codes), (whole.scales, tile.scales), (whole.zeros, tile.zeros)];
            let piece = move |(all, one): (Range<usize>, Range<usize>)| {
                (matrix + all.start + index * one.len(), at + one.start..at + one.end)
            };
            parts.into_iter().map(piece).filter(|(_, piece)| !piece.is_empty())
        })
    }

    /// Dequantizes row `row` of the matrix, `[cols]`, from the bytes of its tile, `row / 16`. Bit-identical
    /// to [`Nested::dequantize_row`] and several times as fast, because no other thread computes meanwhile.
    pub fn dequantize_row(&self, bytes: &[u8], row: usize, out: &mut [f32]) {
        let (shape, fit, row) = (self.shape(), self.fit, row % TILE_ROWS);
        let (shift, entries) = (self.level.shift(), shape.params.table().map(|t| t.entries(self.level)));
        // The planes, and the row's places in the first unit of each; they are the same in all units.
        let (mut planes, mut places) = ([&bytes[..0]; PLANES], [[(0, 0); UNIT_COLS]; PLANES]);
        let mut at = 0;
        for p in 0..self.level.planes() {
            (planes[p], at) = (&bytes[at..at + shape.plane(p).len], at + shape.plane(p).len);
            places[p] = std::array::from_fn(|col| shape.place(p, row, col));
        }
        let layout = shape.plane(0);
        let (scales, zeros) = (&planes[0][layout.scales], &planes[0][layout.zeros]);
        for (u, out) in out[..shape.cols].chunks_mut(UNIT_COLS).enumerate() {
            let mut codes = [0u8; UNIT_COLS];
            for (p, bits) in PLANE_BITS.into_iter().enumerate().take(self.level.planes()) {
                let unit = &planes[p][u * unit_bytes(p)..][..unit_bytes(p)];
                for (code, (byte, low)) in codes.iter_mut().zip(places[p]) {
                    *code = *code << bits | (unit[byte] >> low & ((1 << bits) - 1));
                }
            }
            let param = shape.param(row, u * UNIT_COLS / shape.group);
            let (scale, zero) = shape.params.read(scales, zeros, param);
            let zero = i32::from(zero);
            for (w, code) in out.iter_mut().zip(codes) {
                let integer = match entries {
                    Some(entries) => entries[usize::from(code & 15)].into(),
                    None => i32::from(code) << shift,
                };
                let centred = integer - zero;
                *w = scale * (fit.alpha * centred as f32 + fit.beta);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;
    use crate::quant::GroupParams;

    #[test]
    fn a_tile_alone_has_the_rows_of_its_matrix() {
        // Partial tiles, units and groups; arbitrary bytes, but finite scales.
        for (rows, cols, group, params) in [
            (16, 32, 32, GroupParams::Wide),
            (37, 96, 64, GroupParams::Wide),
            (100, 65, 32, GroupParams::Narrow),
            (5, 200, 64, GroupParams::Wide),
            (37, 200, 64, GroupParams::Narrow),
        ] {
            let shape = Shape::new(rows, cols, group).unwrap().with(params);
            for level in Level::ALL {
                let mut file = Vec::new();
                let mut planes = Vec::new();
                for p in 0..level.planes() {
                    let layout = shape.plane(p);
                    let mut plane: Vec<u8> =
                        (0..layout.len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
                    if params == GroupParams::Wide {
                        plane[layout.scales].chunks_exact_mut(2).for_each(|s| s[1] &= 0x3b);
                    }
                    file.extend_from_slice(&plane);
                    planes.push(Bytes::from(plane));
                }
                let fits = [Fit { alpha: 1.01, beta: 0.4 }; PLANES];
                let matrix = Nested::new(shape, planes, fits).unwrap();
                let tile = Tile::of(&matrix);
                let (mut bytes, mut one, mut want) =
                    (vec![0; tile.bytes()], vec![0.0; cols], vec![0.0; cols]);
                for row in 0..rows {
                    bytes.fill(0xa5);
                    let mut ends = 0;
                    for (from, to) in tile.pieces(row / TILE_ROWS) {
                        assert!(to.start >= ends, "pieces overlap");
                        ends = to.end;
                        bytes[to.clone()].copy_from_slice(&file[from..from + to.len()]);
                    }
                    tile.dequantize_row(&bytes, row, &mut one);
                    matrix.dequantize_row(row, &mut want);
                    assert_eq!(one, want, "row {row} of {shape} at level {level}");
                    assert!(want.iter().all(|w| w.is_finite()) && want.iter().any(|w| *w != want[0]));
                }
            }
        }
    }
}
