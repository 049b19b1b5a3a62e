// Unquantized weights in the tiles of nested ones: 16 rows by units of 32 columns; a unit has 8 vectors of 4
// columns of every row. Padding is zero.

@group(0) @binding(0) var<storage, read> weights: array<vec4<f32>>; // [tiles, units, 8, 16]

struct Matrix {
    base: u32,
    tiles: u32,
    units: u32,
    top: u32, // not used: unquantized weights have no planes
}

// `base` is in words.
fn matrix(base: u32, rows: u32, cols: u32, group: u32, alpha: f32, centre: f32) -> Matrix {
    return Matrix(base / 4u, (rows + 15u) / 16u, (cols + 31u) / 32u, 0u);
}

// Four columns of a row.
fn four(m: Matrix, tile: u32, unit: u32, j: u32, row: u32) -> vec4<f32> {
    return weights[m.base + ((tile * m.units + unit) * 8u + j) * 16u + row];
}

// Four columns of four rows, one vector for each column.
fn square(m: Matrix, tile: u32, unit: u32, j: u32, quad: u32) -> mat4x4<f32> {
    let at = m.base + ((tile * m.units + unit) * 8u + j) * 16u + 4u * quad;
    return transpose(mat4x4(weights[at], weights[at + 1u], weights[at + 2u], weights[at + 3u]));
}
