// Products of 8 rows of one or two matrices with one token's inputs. A unit of 32 columns has two invocations, each with a
// quad of rows: 64 units at a time. What an invocation does is short, as one token has few: many invocations with little
// to do wait for memory together, where few with much would wait one read after another.
//
// Sums are in the order of product_many.wgsl: 8 slices, of which each adds every eighth unit, and then the slices. A
// token alone gets what it gets among others.
//
// Whoever imports this says how many MATRICES there are, and has what own_tile.wgsl asks for.

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

// Of matrix `a` and, where there are two, `b`.
alias Results = array<vec2<f32>, RESULTS>;

// Products with the rows from ROWS · block on; inputs are `fresh` where none of them were multiplied with rows before.
fn multiply(a: Matrix, b: Matrix, cols: u32, block: u32, fresh: bool, lane: u32) -> Results {
    know_one(cols);
    let units = (cols + 31u) / 32u;
    let tile = block / 2u;
    let quad = 2u * (block % 2u) + lane % 2u;
    // What an invocation adds up: of one matrix, the units of a slice in one row.
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

// Which token and which of the rows an invocation's result is of.
fn token_of(i: u32, lane: u32) -> u32 {
    return lane / 8u;
}

fn row_of(i: u32, lane: u32) -> u32 {
    return lane % 8u;
}
