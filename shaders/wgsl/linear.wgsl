// out = matrix · x + bias for up to three matrices of one buffer that share their input, optionally of the RMS norm of x
// (which is then written to `h`), optionally added to `out`. One workgroup: 16 rows, TOKENS tokens.

#import product
#import reduce

const NORM = 1u;
const BIAS = 2u;
const ADD = 4u;

struct Part {
    base: u32,  // word where the matrix begins
    rows: u32,
    group: u32,
    tiles: u32, // tiles of the parts before
    alpha: f32,
    beta: f32,
    at: u32,    // where its first row goes
    stride: u32, // values per token in its output
}

struct Params {
    cols: u32,
    tokens: u32,
    flags: u32,
    eps: f32,
    parts: u32,
    bias: u32, // tiles before the first bias
    part: array<Part, 3>,
}

@group(0) @binding(1) var<storage, read> x: array<f32>;          // [tokens, cols]
@group(0) @binding(2) var<storage, read> norm: array<f32>;       // [cols]
@group(0) @binding(3) var<storage, read> bias: array<f32>;       // [tiles, 16]
@group(0) @binding(4) var<storage, read_write> out0: array<f32>; // [tokens, stride]
@group(0) @binding(5) var<storage, read_write> out1: array<f32>;
@group(0) @binding(6) var<storage, read_write> out2: array<f32>;
@group(0) @binding(7) var<storage, read_write> h: array<f32>;    // [tokens, cols]
var<immediate> p: Params;

var<private> first_token: u32;

fn input(t: u32, col: u32) -> f32 {
    if (col >= p.cols || first_token + t >= p.tokens) {
        return 0.0;
    }
    let value = x[(first_token + t) * p.cols + col];
    if ((p.flags & NORM) != 0u) {
        return value * norm[col];
    }
    return value;
}

// 1 / the root mean square of a token.
fn norm_scale(t: u32, lane: u32) -> f32 {
    var squares = 0.0;
    if (t < p.tokens) {
        for (var col = lane; col < p.cols; col += 128u) {
            let value = x[t * p.cols + col];
            squares = fma(value, value, squares);
        }
    }
    return 1.0 / sqrt(sum_of_all(squares, lane) / f32(p.cols) + p.eps);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    first_token = id.y * TOKENS;
    var which = 0u;
    if (p.parts > 1u && id.x >= p.part[1].tiles) {
        which = 1u;
    }
    if (p.parts > 2u && id.x >= p.part[2].tiles) {
        which = 2u;
    }
    let part = p.part[which];
    let tile = id.x - part.tiles;
    let m = matrix(part.base, part.rows, p.cols, part.group, part.alpha, part.beta);

    var scale = 1.0;
    if ((p.flags & NORM) != 0u) {
        for (var t = 0u; t < TOKENS; t++) {
            let s = norm_scale(first_token + t, lane);
            if (lane / 16u == t) {
                scale = s;
            }
            // Where the parts of one matrix are dispatched one by one, the first writes the normed input.
            if (id.x == 0u && part.at == 0u && first_token + t < p.tokens) {
                let at = (first_token + t) * p.cols;
                for (var col = lane; col < p.cols; col += 128u) {
                    h[at + col] = x[at + col] * s * norm[col];
                }
            }
        }
    }

    var sums: Sums;
    for (var first = 0u; first < p.cols; first += COLS) {
        stage(first, lane);
        accumulate(m, tile, first, lane, &sums);
    }
    var value = total(&sums, lane) * scale;

    let t = first_token + lane / 16u;
    let row = tile * 16u + lane % 16u;
    if (lane >= 16u * TOKENS || t >= p.tokens || row >= part.rows) {
        return;
    }
    if ((p.flags & BIAS) != 0u) {
        value += bias[(p.bias + id.x) * 16u + lane % 16u];
    }
    let at = t * part.stride + part.at + row;
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
