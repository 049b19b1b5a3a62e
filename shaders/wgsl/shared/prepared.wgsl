// Prepared inputs (layout.wgsl), as products read them.
//
// A file that imports this defines `fn source(t: u32) -> u32`, the row of each of TOKENS tokens; any row for a token that does
// not exist.

#import layout

@group(0) @binding(1) var<storage, read> prepared: array<vec4<u32>>;

// Units in memory at a time.
const UNITS = COLS / 32u;

// Where each token's row begins.
var<workgroup> starts: array<u32, TOKENS>;

fn find_rows(cols: u32, lane: u32) {
    if (lane < TOKENS) {
        starts[lane] = source(lane) * (row_vectors(cols) + 1u);
    }
    workgroupBarrier();
}

// Vector `j` of a unit of a token.
fn prepared_vector(t: u32, unit: u32, j: u32) -> vec4<u32> {
    return prepared[starts[t] + VALUES * unit + j];
}

// A word of statistics for a unit of a token.
fn prepared_word(t: u32, units: u32, unit: u32, j: u32) -> u32 {
    let word = STATS * unit + j;
    return prepared[starts[t] + VALUES * units + word / 4u][word % 4u];
}

// The factor of a token's products.
fn prepared_scale(t: u32, cols: u32) -> f32 {
    return bitcast<f32>(prepared[starts[t] + row_vectors(cols)].x);
}
