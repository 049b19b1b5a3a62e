// Products of 16 rows of a matrix with TOKENS inputs: 8 slices of 16 invocations, a slice takes every eighth unit of 32
// columns. The order of summation does not depend on TOKENS, so one token alone gets what it gets among others.
//
// Whoever imports this defines `fn input(t: u32, col: u32) -> f32`, zero beyond the last column, and calls `stage` (of
// `inputs`), which brings COLS columns into workgroup memory, before it accumulates products with them.

#import weights
#import inputs
#import unit

const SLICES = 8u;

var<workgroup> slices: array<f32, TOKENS * 128u>;

alias Sums = array<f32, TOKENS>;

// Adds the products with the staged columns.
fn accumulate(m: Matrix, tile: u32, first: u32, lane: u32, sums: ptr<function, Sums>) {
    let row = lane % 16u;
    let end = min(COLS / 32u, m.units - first / 32u);
    for (var u = lane / 16u; u < end; u += SLICES) {
        add_unit(m, tile, first / 32u + u, u, row, sums);
    }
}

// In lane 16·t + row: the product of the row with input `t`.
fn total(sums: ptr<function, Sums>, lane: u32) -> f32 {
    workgroupBarrier();
    for (var t = 0u; t < TOKENS; t++) {
        slices[(t * SLICES + lane / 16u) * 16u + lane % 16u] = (*sums)[t];
    }
    workgroupBarrier();
    var sum = 0.0;
    if (lane < 16u * TOKENS) {
        for (var s = 0u; s < SLICES; s++) {
            sum += slices[(lane / 16u * SLICES + s) * 16u + lane % 16u];
        }
    }
    return sum;
}
