// out = matrix · x + bias for up to three matrices of one buffer that share their input. Optionally with the
// RMS norm of x (which the variant for one token also writes to `h`), and optionally added to `out`. One
// workgroup: several blocks of ROWS rows, TOKENS tokens.

#import product
#import normed
#import reduce

const NORM = 1u;
const BIAS = 2u;
const ADD = 4u;
const MATRICES = 1u;

struct Part {
    base: u32,  // index of the matrix's first word
    rows: u32,
    group: u32,
    tiles: u32, // of earlier parts
    alpha: f32,
    centre: f32,
    at: u32,    // index of its first row in the output
    stride: u32, // values per token in its output
}

struct Params {
    cols: u32,
    tokens: u32,
    flags: u32,
    eps: f32,
    parts: u32,
    bias: u32, // tiles before the first bias
    each: u32, // blocks of rows per workgroup
    part: array<Part, 3>,
}

@group(0) @binding(2) var<storage, read> bias: array<f32>;       // [tiles, 16]
@group(0) @binding(3) var<storage, read_write> out0: array<f32>; // [tokens, stride]
@group(0) @binding(4) var<storage, read_write> out1: array<f32>;
@group(0) @binding(5) var<storage, read_write> out2: array<f32>;
var<immediate> p: Params;

var<private> first_token: u32;

fn blocks(rows: u32) -> u32 {
    return (rows + ROWS - 1u) / ROWS;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    know_one(p.cols);
    first_token = id.y * TOKENS;
    var all = blocks(p.part[0].rows);
    if (p.parts > 1u) {
        all += blocks(p.part[1].rows);
    }
    if (p.parts > 2u) {
        all += blocks(p.part[2].rows);
    }
    for (var block = id.x * p.each; block < min(all, (id.x + 1u) * p.each); block++) {
        rows_of(block, block == id.x * p.each, lane);
    }
    // If the parts of one matrix are dispatched separately, the first dispatch writes the normed input.
    if ((p.flags & NORM) != 0u && id.x == 0u && p.part[0].at == 0u) {
        write_norm(lane);
    }
}

fn rows_of(of_all: u32, fresh: bool, lane: u32) {
    var which = 0u;
    var block = of_all;
    if (p.parts > 1u && block >= blocks(p.part[0].rows)) {
        which = 1u;
        block -= blocks(p.part[0].rows);
        if (p.parts > 2u && block >= blocks(p.part[1].rows)) {
            which = 2u;
            block -= blocks(p.part[1].rows);
        }
    }
    let part = p.part[which];
    let m = matrix(part.base, part.rows, p.cols, part.group, part.alpha, part.centre);
    let results = multiply(m, m, p.cols, block, fresh, lane);
    take_scale(fresh, lane);
    for (var i = 0u; i < RESULTS; i++) {
        let t = token_of(i, lane);
        let token = first_token + t;
        let row = block * ROWS + row_of(i, lane);
        if (t >= TOKENS || token >= p.tokens || row >= part.rows) {
            continue;
        }
        // One fma, because a compiler may or may not fuse two operations.
        var scale = 1.0;
        var add = 0.0;
        if ((p.flags & NORM) != 0u) {
            scale = scale_of_token(t);
        }
        if ((p.flags & BIAS) != 0u) {
            add = bias[(p.bias + part.tiles) * 16u + row];
        }
        var value = fma(results[i].x, scale, add);
        let at = token * part.stride + part.at + row;
        if (which == 0u) {
            if ((p.flags & ADD) != 0u) {
                value += out0[at];
            }
            out0[at] = value;
        } else if (which == 1u) {
            out1[at] = value;
        } else {
            out2[at] = value;
        }
    }
}
