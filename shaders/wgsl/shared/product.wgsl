// Products of 16 rows of a matrix with TOKENS inputs: 8 slices of 16 invocations, a slice takes every eighth unit of 32
// columns. The order of summation does not depend on TOKENS, so one token alone gets what it gets among others.
//
// Whoever imports this defines `fn input(t: u32, col: u32) -> f32`, zero beyond the last column.

#import weights
#import unit

const SLICES = 8u;

var<workgroup> x_tile: array<vec4<f32>, TOKENS * COLS / 4u>;
var<workgroup> x_sums: array<f32, TOKENS * COLS / 32u>;
var<workgroup> slices: array<f32, TOKENS * 128u>;

alias Sums = array<f32, TOKENS>;

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 4u; i += 128u) {
        let t = i / (COLS / 4u);
        let col = first + i % (COLS / 4u) * 4u;
        x_tile[i] = vec4(input(t, col), input(t, col + 1u), input(t, col + 2u), input(t, col + 3u));
    }
    workgroupBarrier();
    if (PLANES > 0u) {
        for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
            var sum = vec4<f32>();
            for (var j = 0u; j < 8u; j++) {
                sum += x_tile[8u * i + j];
            }
            x_sums[i] = (sum.x + sum.y) + (sum.z + sum.w);
        }
        workgroupBarrier();
    }
}

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
