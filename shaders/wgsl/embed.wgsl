// out[i] = scale · table[ids[i]] if that row is in this part of the table. One invocation: four columns of one token.

#import weights

struct Params {
    base: u32,
    first: u32, // the part's first row
    rows: u32,
    cols: u32,
    group: u32,
    alpha: f32,
    centre: f32,
    ids: u32,   // index of the first id
    scale: f32,
}

@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [tokens, cols]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = ids[p.ids + id.y];
    let col = (id.x * 128u + lane) * 4u;
    if (col >= p.cols || token < p.first || token >= p.first + p.rows) {
        return;
    }
    let row = token - p.first;
    let m = matrix(p.base, p.rows, p.cols, p.group, p.alpha, p.centre);
    let values = four(m, row / 16u, col / 32u, col % 32u / 4u, row % 16u);
    for (var i = 0u; i < min(4u, p.cols - col); i++) {
        out[id.y * p.cols + col + i] = p.scale * values[i];
    }
}
