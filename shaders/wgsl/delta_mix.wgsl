// The inputs of a gated delta net: SiLU(conv(queries, keys, values)), oldest tap first, where queries and keys have unit length and
// queries are divided by the root of their width. With `adds` (Mamba-2), queries and keys are not scaled. Also writes the last inputs
// of the convolution to the state. One workgroup: one head of queries, keys or values of one token or, after the tokens, of one row
// of the state.

#import reduce

struct Params {
    k_heads: u32,
    v_heads: u32,
    k_dim: u32,
    v_dim: u32,
    taps: u32,
    tokens: u32,
    values: u32,      // of a slot: rows that are kept, then the memory
    before_slot: u32, // the slot of the tokens before
    after_slot: u32,  // another, which is written
    before: u32,      // whether there are any before
    bias: u32,        // whether biases follow the weights
    adds: u32,        // whether queries and keys are not scaled
}

@group(0) @binding(0) var<storage, read> qkv: array<f32>;           // [tokens, channels]
@group(0) @binding(1) var<storage, read> weights: array<f32>;       // [channels, taps], then [channels]
@group(0) @binding(2) var<storage, read_write> state: array<f32>;   // [slots, values]
@group(0) @binding(3) var<storage, read_write> mixed: array<f32>;   // [tokens, channels]
var<immediate> p: Params;

fn channels() -> u32 {
    return 2u * p.k_heads * p.k_dim + p.v_heads * p.v_dim;
}

// The input of a channel at a token, counted from `taps - 1` before the first.
fn input(i: u32, channel: u32) -> f32 {
    let kept = p.taps - 1u;
    if (i >= kept) {
        return qkv[(i - kept) * channels() + channel];
    }
    if (p.before == 1u) {
        return state[p.before_slot * p.values + i * channels() + channel];
    }
    return 0.0;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let is_value = id.x >= 2u * p.k_heads;
    let dim = select(p.k_dim, p.v_dim, is_value);
    let first = select(id.x * p.k_dim, 2u * p.k_heads * p.k_dim + (id.x - 2u * p.k_heads) * p.v_dim, is_value);
    if (id.y >= p.tokens) {
        let row = id.y - p.tokens;
        for (var i = lane; i < dim; i += 128u) {
            state[p.after_slot * p.values + row * channels() + first + i] = input(id.y, first + i);
        }
        return;
    }
    let at = id.y * channels() + first;
    var squares = 0.0;
    for (var i = lane; i < dim; i += 128u) {
        var sum = 0.0;
        if (p.bias == 1u) {
            sum = weights[channels() * p.taps + first + i];
        }
        for (var tap = 0u; tap < p.taps; tap++) {
            sum = fma(weights[(first + i) * p.taps + tap], input(id.y + tap, first + i), sum);
        }
        let value = sum / (1.0 + exp(-sum));
        mixed[at + i] = value;
        squares = fma(value, value, squares);
    }
    var scale = 1.0 / sqrt(sum_of_all(squares, lane) + 1e-6);
    if (id.x < p.k_heads) {
        scale /= sqrt(f32(p.k_dim));
    }
    if (!is_value && p.adds == 0u) {
        for (var i = lane; i < dim; i += 128u) {
            mixed[at + i] *= scale;
        }
    }
}
