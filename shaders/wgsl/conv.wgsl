// A gated short convolution, per channel: out = C ⊙ conv(B ⊙ v), oldest tap first. Also stores the last inputs B ⊙
// v for the tokens after these. One invocation: one channel of one token or, after the tokens, of one stored row.

struct Params {
    d: u32,
    taps: u32,
    tokens: u32,
    before_slot: u32, // the slot of the tokens before
    after_slot: u32,  // the slot to write, a different one
    before: u32,      // whether there are tokens before
    bias: u32,        // whether there is a bias, after the weights
}

@group(0) @binding(0) var<storage, read> x: array<f32>;           // [tokens, 3, d]: B, C, v
@group(0) @binding(1) var<storage, read> weights: array<f32>;     // [d, taps], [d]
@group(0) @binding(2) var<storage, read_write> state: array<f32>; // [slots, taps - 1, d]
@group(0) @binding(3) var<storage, read_write> out: array<f32>;   // [tokens, d]
var<immediate> p: Params;

// The input of a channel at token `t`, counted from `taps - 1` before the first.
fn input(i: u32, channel: u32) -> f32 {
    let kept = p.taps - 1u;
    if (i >= kept) {
        let at = 3u * (i - kept) * p.d + channel;
        return x[at] * x[at + 2u * p.d];
    }
    if (p.before == 1u) {
        return state[(p.before_slot * kept + i) * p.d + channel];
    }
    return 0.0;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let channel = id.x * 128u + lane;
    if (channel >= p.d) {
        return;
    }
    if (id.y >= p.tokens) {
        let row = id.y - p.tokens;
        state[(p.after_slot * (p.taps - 1u) + row) * p.d + channel] = input(id.y, channel);
        return;
    }
    var sum = 0.0;
    if (p.bias == 1u) {
        sum = weights[p.d * p.taps + channel];
    }
    for (var tap = 0u; tap < p.taps; tap++) {
        sum = fma(weights[channel * p.taps + tap], input(id.y + tap, channel), sum);
    }
    out[id.y * p.d + channel] = x[(3u * id.y + 1u) * p.d + channel] * sum;
}
