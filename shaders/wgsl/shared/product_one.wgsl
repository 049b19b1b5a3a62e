// Products of 8 rows of one or two matrices with one token's inputs. A unit of 32 columns has two invocations,
// each with a quad of rows: 64 units at a time. An invocation does little, because one token has few products:
// many small invocations wait for memory together, whereas few large ones would wait for one read after another.
//
// Sums have the order of product_many.wgsl: 8 slices, each adding every eighth unit, and then the sum of the
// slices. So a token gets the same result alone and among others.
//
// A file that imports this defines MATRICES, the number of matrices, and what own_tile.wgsl requires.

#import weights
#import own_tile
#import inputs
#import one
#import unit

const SLICES = 8u;
const RESULTS = 1u;

// Products of a quad with a unit.
var<workgroup> products: array<vec4<f32>, MATRICES * 128u>; // [matrices, 64 units, 2 quads]
var<workgroup> slices: array<f32, 128>; // [matrices, slices, 8 rows]

alias Sums = array<vec4<f32>, 1>;

// For matrix `a` and, if there are two, `b`.
alias Results = array<vec2<f32>, RESULTS>;

// Products with the rows from ROWS · block on; inputs are `fresh` if they were not multiplied with rows before.
fn multiply(a: Matrix, b: Matrix, cols: u32, block: u32, fresh: bool, lane: u32) -> Results {
    know_one(cols);
    let units = (cols + 31u) / 32u;
    let tile = block / 2u;
    let quad = 2u * (block % 2u) + lane % 2u;
    // What an invocation sums: for one matrix, the units of a slice in one row.
    let matrix = lane / 64u;
    let slice = lane % 64u / 8u;
    let row = lane % 8u;
    var sum = 0.0;
    for (var first = 0u; first < units; first += UNITS) {
        let own = lane / 2u;
        let unit = min(first + own, units - 1u);
        let unit_a = load_unit(a, tile, unit, quad);
        let unit_b = load_unit(b, tile, unit, quad);
        if (fresh || units > UNITS) {
            stage(first, lane);
        }
        var of_a: Sums;
        var of_b: Sums;
        if (first + own < units) {
            take_unit(staged(own));
            add_loaded(a, unit_a, 0u, &of_a);
            if (MATRICES > 1u) {
                add_loaded(b, unit_b, 0u, &of_b);
            }
        }
        products[lane] = of_a[0];
        if (MATRICES > 1u) {
            products[(MATRICES - 1u) * 128u + lane] = of_b[0];
        }
        workgroupBarrier();
        if (matrix < MATRICES) {
            for (var u = slice; u < UNITS; u += SLICES) {
                sum = plus_single(sum, products[128u * matrix + 2u * u + row / 4u][row % 4u]);
            }
        }
        workgroupBarrier();
    }
    slices[lane] = sum;
    workgroupBarrier();
    var all = vec2<f32>();
    if (lane < 8u) {
        for (var s = 0u; s < SLICES; s++) {
            all.x = plus_single(all.x, slices[8u * s + lane]);
            all.y = plus_single(all.y, slices[64u + 8u * s + lane]);
        }
    }
    return Results(all);
}

// The token and the row of an invocation's result.
fn token_of(i: u32, lane: u32) -> u32 {
    return lane / 8u;
}

fn row_of(i: u32, lane: u32) -> u32 {
    return lane % 8u;
}
