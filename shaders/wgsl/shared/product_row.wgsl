// Products of 2 rows of one or two unquantized matrices with one token's inputs, like product_one.wgsl, but with one
// invocation per row of a unit, because a unit has eight times the bytes of a 4-bit one. Sums have the same order.

#import weights
#import own_tile
#import inputs
#import one

const SLICES = 8u;
const RESULTS = 1u;

var<workgroup> products: array<f32, MATRICES * 128u>; // [matrices, 64 units, 2 rows]
var<workgroup> slices: array<f32, 16u * MATRICES>;    // [matrices, slices, 2 rows]

// For matrix `a` and, if there are two, `b`.
alias Results = array<vec2<f32>, RESULTS>;

alias Row = array<vec4<f32>, 8>;

fn load_row(m: Matrix, row: u32, unit: u32) -> Row {
    var w: Row;
    for (var j = 0u; j < 8u; j++) {
        w[j] = four(m, row / 16u, unit, j, row % 16u);
    }
    return w;
}

fn product(row: Row) -> f32 {
    var w = row;
    var d = 0.0;
    for (var j = 0u; j < 8u; j++) {
        let x = vector_of(0u, 0u, j);
        d = fma(w[j].x, x.x, d);
        d = fma(w[j].y, x.y, d);
        d = fma(w[j].z, x.z, d);
        d = fma(w[j].w, x.w, d);
    }
    return d;
}

// Products with the rows from ROWS · block on; inputs are `fresh` if they were not multiplied with rows before.
fn multiply(a: Matrix, b: Matrix, cols: u32, block: u32, fresh: bool, lane: u32) -> Results {
    know_one(cols);
    let units = (cols + 31u) / 32u;
    let own = lane / 2u;
    let row = 2u * block + lane % 2u;
    var sum = 0.0;
    for (var first = 0u; first < units; first += UNITS) {
        let unit = min(first + own, units - 1u);
        let row_a = load_row(a, row, unit);
        let row_b = load_row(b, row, unit);
        if (fresh || units > UNITS) {
            stage(first, lane);
        }
        var of_a = 0.0;
        var of_b = 0.0;
        if (first + own < units) {
            take_unit(staged(own));
            of_a = product(row_a);
            if (MATRICES > 1u) {
                of_b = product(row_b);
            }
        }
        products[lane] = of_a;
        if (MATRICES > 1u) {
            products[(MATRICES - 1u) * 128u + lane] = of_b;
        }
        workgroupBarrier();
        if (lane < 16u * MATRICES) {
            for (var u = lane % 16u / 2u; u < UNITS; u += SLICES) {
                sum = plus_single(sum, products[128u * (lane / 16u) + 2u * u + lane % 2u]);
            }
        }
        workgroupBarrier();
    }
    if (lane < 16u * MATRICES) {
        slices[lane] = sum;
    }
    workgroupBarrier();
    var all = vec2<f32>();
    if (lane < 2u) {
        for (var s = 0u; s < SLICES; s++) {
            all.x = plus_single(all.x, slices[2u * s + lane]);
            all.y = plus_single(all.y, slices[16u * (MATRICES - 1u) + 2u * s + lane]);
        }
    }
    return Results(all);
}

// The token and the row of an invocation's result.
fn token_of(i: u32, lane: u32) -> u32 {
    return lane / 2u;
}

fn row_of(i: u32, lane: u32) -> u32 {
    return lane % 2u;
}
