// Unquantized weights in the tiles of nested ones: 16 rows by units of 32 columns, a unit as 8 vectors of 4 columns of
// every row. Padding is zero.

@group(0) @binding(0) var<storage, read> weights: array<vec4<f32>>; // [tiles, units, 8, 16]

struct Matrix {
    base: u32,
    units: u32,
    top: u32, // not used: unquantized weights have no planes
}

fn matrix(base: u32, rows: u32, cols: u32, group: u32, alpha: f32, beta: f32) -> Matrix {
    return Matrix(base / 4u, (cols + 31u) / 32u, 0u);
}

// Four columns of a row.
fn four(m: Matrix, tile: u32, unit: u32, j: u32, row: u32) -> vec4<f32> {
    return weights[m.base + ((tile * m.units + unit) * 8u + j) * 16u + row];
}
