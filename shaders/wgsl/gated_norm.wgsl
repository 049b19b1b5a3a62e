// out = x / sqrt(mean(x²) + eps) · weight · SiLU(z) or sigmoid(z), per head. One workgroup: one head of one token.

#import reduce

struct Params {
    heads: u32,
    dim: u32,
    stride: u32, // values per row of x
    first: u32,  // index of the first head in a row
    sigmoid: u32, // whether the gate is sigmoid(z)
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [rows, stride]
@group(0) @binding(1) var<storage, read> weight: array<f32>;    // [dim]
@group(0) @binding(2) var<storage, read> z: array<f32>;         // [rows, heads, dim]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [rows, heads, dim]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let place = id.y * p.stride + p.first + id.x * p.dim;
    let to = (id.y * p.heads + id.x) * p.dim;
    var squares = 0.0;
    for (var i = lane; i < p.dim; i += 128u) {
        let value = x[place + i];
        squares = fma(value, value, squares);
    }
    let scale = 1.0 / sqrt(fma(sum_of_all(squares, lane), 1.0 / f32(p.dim), p.eps));
    for (var i = lane; i < p.dim; i += 128u) {
        let gate = z[to + i];
        let factor = select(gate, 1.0, p.sigmoid == 1u) / (1.0 + exp(-gate));
        out[to + i] = x[place + i] * scale * weight[i] * factor;
    }
}
