// Products of 64 rows of one or two matrices with TOKENS tokens' inputs, staged in workgroup memory. Each of 8
// slices has 16 invocations, with a quad of rows and all tokens each, and takes every eighth unit of 32 columns.
//
// A file that imports this defines MATRICES, the number of matrices, and what prepared.wgsl requires.

#import weights
#import inputs
#import one
#import unit

const SLICES = 8u;
const RESULTS = TOKENS * ROWS / 128u;

var<workgroup> products: array<vec4<f32>, 256>; // [2 tokens, slices, quads]

alias Sums = array<vec4<f32>, TOKENS>;

// For matrix `a` and, if there are two, `b`.
alias Results = array<vec2<f32>, RESULTS>;

// Sums over slices for two tokens: every invocation gets a row of one of them.
fn add_two(first: vec4<f32>, second: vec4<f32>, lane: u32) -> f32 {
    products[lane] = first;
    products[128u + lane] = second;
    workgroupBarrier();
    var all = 0.0;
    let row = lane % 64u;
    for (var s = 0u; s < SLICES; s++) {
        all = plus_single(all, products[128u * (lane / 64u) + 16u * s + row / 4u][row % 4u]);
    }
    workgroupBarrier();
    return all;
}

// Sums over slices: every invocation gets rows of two tokens at a time. Unrolled by hand: compilers do not
// unroll a loop with barriers, and keep an array that it indexes in memory.
fn add_slices(all: ptr<function, Sums>, lane: u32) -> array<f32, RESULTS> {
    let sums = *all;
    return array(
        add_two(sums[0], sums[1], lane),
        add_two(sums[2], sums[3], lane),
        add_two(sums[4], sums[5], lane),
        add_two(sums[6], sums[7], lane)
    );
}

// Products with the rows from ROWS · block on, one matrix after the other: sums of both at once would take
// registers that other workgroups can use.
fn multiply(a: Matrix, b: Matrix, cols: u32, block: u32, fresh: bool, lane: u32) -> Results {
    know_one(cols);
    let units = units_of(cols);
    find_rows(cols, lane);
    // Invocations whose rows are beyond the last compute other rows again.
    let tile = min(ROWS / 16u * block + lane % 16u / 4u, a.tiles - 1u);
    var results: Results;
    for (var which = 0u; which < MATRICES; which++) {
        var m = a;
        if (which > 0u) {
            m = b;
        }
        var sums: Sums;
        for (var first = 0u; first < units; first += UNITS) {
            stage(first, units, lane);
            let end = min(UNITS, units - first);
            for (var u = lane / 16u; u < end; u += SLICES) {
                add_unit(m, tile, first + u, u, lane % 4u, &sums);
            }
        }
        let all = add_slices(&sums, lane);
        for (var i = 0u; i < RESULTS; i++) {
            results[i][which] = all[i];
        }
    }
    return results;
}

// The token and the row of an invocation's result.
fn token_of(i: u32, lane: u32) -> u32 {
    return 2u * i + lane / 64u;
}

fn row_of(i: u32, lane: u32) -> u32 {
    return lane % 64u;
}
