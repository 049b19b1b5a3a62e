// out = matrix · x + bias for up to three matrices of one buffer that share their input, optionally of the RMS norm of x
// (which is then written to `h`), optionally added to `out`. One workgroup: some blocks of ROWS rows, TOKENS tokens.

#import product
#import reduce
#import x

const NORM = 1u;
const BIAS = 2u;
const ADD = 4u;
const MATRICES = 1u;

struct Part {
    base: u32,  // word where the matrix begins
    rows: u32,
    group: u32,
    tiles: u32, // of the parts before
    alpha: f32,
    centre: f32,
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
    each: u32, // blocks of rows of a workgroup
    part: array<Part, 3>,
}

@group(0) @binding(2) var<storage, read> norm: array<vec4<f32>>; // [cols]
@group(0) @binding(3) var<storage, read> bias: array<f32>;       // [tiles, 16]
@group(0) @binding(4) var<storage, read_write> out0: array<f32>; // [tokens, stride]
@group(0) @binding(5) var<storage, read_write> out1: array<f32>;
@group(0) @binding(6) var<storage, read_write> out2: array<f32>;
@group(0) @binding(7) var<storage, read_write> h: array<f32>;    // [tokens, cols]
var<immediate> p: Params;

var<private> first_token: u32;
var<workgroup> scales: array<f32, TOKENS>;
// One token's: of what this invocation brought, and what is known when all has been brought.
var<private> squares: vec4<f32>;
var<private> own_scale: f32;

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.cols || first_token + t >= p.tokens) {
        return vec4<f32>();
    }
    let value = x_of(first_token + t, col, p.cols);
    if ((p.flags & NORM) != 0u) {
        if (TOKENS == 1u) {
            squares = fma(value, value, squares);
        }
        return value * before(norm[col / 4u], col, p.cols);
    }
    return value;
}

// 1 / the root mean square of a token, of which this invocation has the squares of every 128th vector.
fn norm_scale(squares: vec4<f32>, lane: u32) -> f32 {
    let sum = sum_of_all(sum_of_four(squares), lane);
    return 1.0 / sqrt(fma(sum, 1.0 / f32(p.cols), p.eps));
}

fn write_normed(token: u32, scale: f32, lane: u32) {
    for (var col = 4u * lane; col < p.cols; col += 512u) {
        let at = token * p.cols + col;
        let value = x_at(at) * scale * norm[col / 4u];
        for (var i = 0u; i < min(4u, p.cols - col); i++) {
            h[at + i] = value[i];
        }
    }
}

// Norms of the workgroup's tokens, which the first of all writes.
fn take_norms(first: bool, lane: u32) {
    for (var t = 0u; t < TOKENS; t++) {
        let token = first_token + t;
        var squares = vec4<f32>();
        if (token < p.tokens) {
            for (var col = 4u * lane; col < p.cols; col += 512u) {
                let value = x_of(token, col, p.cols);
                squares = fma(value, value, squares);
            }
        }
        let scale = norm_scale(squares, lane);
        if (lane == 0u) {
            scales[t] = scale;
        }
        if (first && token < p.tokens) {
            write_normed(token, scale, lane);
        }
    }
    workgroupBarrier();
}

fn blocks(rows: u32) -> u32 {
    return (rows + ROWS - 1u) / ROWS;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    know_one(p.cols);
    first_token = id.y * TOKENS;
    // Where the parts of one matrix are dispatched one by one, the first writes the normed input.
    let writes = (p.flags & NORM) != 0u && id.x == 0u && p.part[0].at == 0u;
    if (TOKENS > 1u && (p.flags & NORM) != 0u) {
        take_norms(writes, lane);
    }
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
    if (TOKENS == 1u && writes) {
        write_normed(0u, own_scale, lane);
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

    squares = vec4<f32>();
    let results = multiply(m, m, p.cols, block, fresh, lane);
    if (TOKENS == 1u && (p.flags & NORM) != 0u && fresh) {
        own_scale = norm_scale(squares, lane);
    }
    for (var i = 0u; i < RESULTS; i++) {
        let t = token_of(i, lane);
        let token = first_token + t;
        let row = block * ROWS + row_of(i, lane);
        if (t >= TOKENS || token >= p.tokens || row >= part.rows) {
            continue;
        }
        // In one operation, for whether a compiler makes one of two is its affair.
        var scale = 1.0;
        var add = 0.0;
        if ((p.flags & NORM) != 0u) {
            scale = select(scales[t], own_scale, TOKENS == 1u);
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
