// Writes prepared inputs (layout.wgsl).
//
// A file that imports this defines TO, the binding of the prepared inputs.

#import layout

@group(0) @binding(TO) var<storage, read_write> to: array<vec4<u32>>;

// Writes a unit of a row with `cols` columns.
fn write_unit(row: u32, cols: u32, unit: u32, x: array<vec4<f32>, 8>) {
    var packed = pack_unit(x);
    let start = row * (row_vectors(cols) + 1u);
    for (var j = 0u; j < VALUES; j++) {
        to[start + VALUES * unit + j] = packed.values[j];
    }
    for (var j = 0u; j < STATS; j++) {
        let word = STATS * unit + j;
        to[start + VALUES * units_of(cols) + word / 4u][word % 4u] = packed.stats[j];
    }
}
