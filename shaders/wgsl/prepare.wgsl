// Prepares a row for products of many tokens (shared/layout.wgsl), or optionally its RMS norm, which is then
// also written to `h`. One workgroup: one row, or one of the listed rows.

const TO = 2u; // binding

#import write_prepared
#import norm
#import x

const NORM = 1u;
const LISTED = 2u;

struct Params {
    cols: u32,
    rows: u32,
    flags: u32,
    eps: f32,
    first: u32, // index of the list's first entry
}

@group(0) @binding(0) var<storage, read> norm: array<vec4<f32>>; // [cols]
@group(0) @binding(3) var<storage, read_write> h: array<f32>;    // [rows, cols]
@group(0) @binding(4) var<storage, read> listed: array<u32>;     // [rows]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) all: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    know_one(p.cols);
    let i = id.y * all.x + id.x;
    if (i >= p.rows) {
        return;
    }
    var row = i;
    if ((p.flags & LISTED) != 0u) {
        row = listed[p.first + i];
    }
    let normed = (p.flags & NORM) != 0u;
    for (var unit = lane; unit < units_of(p.cols); unit += 128u) {
        var x: array<vec4<f32>, 8>;
        for (var j = 0u; j < 8u; j++) {
            let col = 32u * unit + 4u * j;
            if (col < p.cols) {
                x[j] = x_of(row, col, p.cols);
                if (normed) {
                    x[j] = x[j] * before(norm[col / 4u], col, p.cols);
                }
            }
        }
        write_unit(row, p.cols, unit, x);
    }
    if (!normed) {
        return;
    }
    var squares = vec4<f32>();
    for (var col = 4u * lane; col < p.cols; col += 512u) {
        let value = x_of(row, col, p.cols);
        squares = fma(value, value, squares);
    }
    let scale = norm_scale(squares, lane);
    write_normed(row, scale, lane);
    if (lane == 0u) {
        let start = row * (row_vectors(p.cols) + 1u);
        to[start + row_vectors(p.cols)] = vec4(bitcast<u32>(scale));
    }
}
