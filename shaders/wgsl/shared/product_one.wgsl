// Products of 16 rows of one or two matrices with one token's inputs. Every unit of 32 columns has four invocations, each
// with a quad of rows: 32 units at a time, and several such parts before anybody waits, so that many reads are under way.
//
// Sums are in the order of product_many.wgsl: 8 slices, of which each adds every eighth unit, and then the slices. A
// token alone gets what it gets among others.
//
// Whoever imports this says how many MATRICES there are and defines `fn input(t: u32, col: u32) -> vec4<f32>`, four columns
// from `col` on, zero beyond the last.

#import weights
#import inputs
#import unit

const SLICES = 8u;
const RESULTS = 1u;

// Products with 32 units.
const PARTS = 4u;
var<workgroup> products: array<vec4<f32>, PARTS * 128u>; // [parts, units, quads]

alias Sums = array<vec4<f32>, 1>;

// Of matrix `a` and, where there are two, `b`.
alias Results = array<vec2<f32>, RESULTS>;

// An invocation's unit times its quad; nothing for one that is not there.
fn product_of(m: Matrix, tile: u32, unit: u32, there: bool, lane: u32) -> vec4<f32> {
    var sums: Sums;
    if (there) {
        add_unit(m, tile, unit, 0u, lane % 4u, &sums);
    }
    return sums[0];
}

// Adds a part's products with the units of an invocation's slice to its row.
fn add_slice(part: u32, lane: u32, so_far: f32) -> f32 {
    let row = lane % 16u;
    var sum = so_far;
    for (var u = lane / 16u; u < 32u; u += SLICES) {
        sum += products[128u * part + 4u * u + row / 4u][row % 4u];
    }
    return sum;
}

// In lane `row`: the sum of the row's slices.
fn add_slices(sum: vec2<f32>, lane: u32) -> vec2<f32> {
    products[lane] = vec4(sum, 0.0, 0.0);
    workgroupBarrier();
    var all = vec2<f32>();
    for (var s = 0u; s < SLICES; s++) {
        all += products[16u * s + lane % 16u].xy;
    }
    workgroupBarrier();
    return all;
}

// Products with the rows from ROWS · block on.
fn multiply(a: Matrix, b: Matrix, cols: u32, block: u32, lane: u32) -> Results {
    let units = (cols + 31u) / 32u;
    var sum = vec2<f32>();
    for (var first = 0u; first < units; first += 32u * PARTS / MATRICES) {
        for (var part = 0u; part < PARTS; part += MATRICES) {
            let unit = first + 32u * part / MATRICES + lane / 4u;
            if (unit < units) {
                take_unit(unit);
            }
            products[128u * part + lane] = product_of(a, block, unit, unit < units, lane);
            if (MATRICES > 1u) {
                products[128u * part + 128u + lane] = product_of(b, block, unit, unit < units, lane);
            }
        }
        workgroupBarrier();
        for (var part = 0u; part < PARTS; part += MATRICES) {
            sum.x = add_slice(part, lane, sum.x);
            if (MATRICES > 1u) {
                sum.y = add_slice(part + 1u, lane, sum.y);
            }
        }
        workgroupBarrier();
    }
    return Results(add_slices(sum, lane));
}

// Which token and which of the rows an invocation's result is of.
fn token_of(i: u32, lane: u32) -> u32 {
    return lane / 16u;
}

fn row_of(i: u32, lane: u32) -> u32 {
    return lane % 16u;
}
