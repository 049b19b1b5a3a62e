// out = norm(x) · weight · act(z), or norm(x · act(z)) · weight, per head: norm(x) = x / sqrt(mean(x²) + eps);
// act is SiLU or sigmoid. One workgroup: one head of one token.

#import reduce

struct Params {
    heads: u32,
    dim: u32,
    weights: u32,    // number of weights: those of one head, or of all heads
    gate_first: u32, // whether the gate comes before the norm
    stride: u32,     // values per row of x
    first: u32,      // index of the first value in a row
    sigmoid: u32,    // whether the gate is sigmoid(z)
    eps: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [rows, stride]
@group(0) @binding(1) var<storage, read> weight: array<f32>;    // [weights]
@group(0) @binding(2) var<storage, read> z: array<f32>;         // [rows, heads, dim]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [rows, heads, dim]
var<immediate> p: Params;

fn act(gate: f32) -> f32 {
    return select(gate, 1.0, p.sigmoid == 1u) / (1.0 + exp(-gate));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let place = id.y * p.stride + p.first + id.x * p.dim;
    let to = (id.y * p.heads + id.x) * p.dim;
    var squares = 0.0;
    for (var i = lane; i < p.dim; i += 128u) {
        var value = x[place + i];
        if (p.gate_first == 1u) {
            value *= act(z[to + i]);
        }
        squares = fma(value, value, squares);
    }
    let scale = 1.0 / sqrt(fma(sum_of_all(squares, lane), 1.0 / f32(p.dim), p.eps));
    for (var i = lane; i < p.dim; i += 128u) {
        out[to + i] = x[place + i] * scale * weight[(id.x * p.dim + i) % p.weights] * act(z[to + i]);
    }
}
