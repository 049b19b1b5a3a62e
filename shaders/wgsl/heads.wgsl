// Per-head products: `out[t, h] = matrix[h] · x[t, h]`, with all heads' rows in one matrix. Values after the
// inputs of a head of x are copied in front of its products. One workgroup: ROWS rows of one head, one token.

#import product
#import x

const MATRICES = 1u;

struct Params {
    base: u32, // index of the matrix's first word
    rows: u32, // of all heads
    cols: u32,
    group: u32,
    alpha: f32,
    centre: f32,
    heads: u32,
    kept: u32,
}

@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [tokens, heads, kept + rows of a head]
var<immediate> p: Params;

var<private> begin: u32; // of a token's head in x

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.cols) {
        return vec4<f32>();
    }
    return before(x_at(begin + col), col, p.cols);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    know_one(p.cols);
    let rows = p.rows / p.heads;
    let head = id.x * ROWS / rows;
    let slot = id.y * p.heads + head;
    begin = slot * (p.cols + p.kept);
    let m = matrix(p.base, p.rows, p.cols, p.group, p.alpha, p.centre);
    let results = multiply(m, m, p.cols, id.x, true, lane);
    let to = slot * (p.kept + rows);
    if (token_of(0u, lane) == 0u) {
        out[to + p.kept + id.x * ROWS + row_of(0u, lane) - head * rows] = results[0].x;
    }
    if (id.x * ROWS == head * rows) {
        for (var i = lane; i < p.kept; i += 128u) {
            let at = begin + p.cols + i;
            out[to + i] = x[at / 4u][at % 4u];
        }
    }
}
