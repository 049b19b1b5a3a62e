// out[token] = Σ gate · slots[slot] over the token's slots, in order of rank. A gate of zero marks a slot
// that was not computed. One invocation: one column of one token.

struct Params {
    d: u32,
    top_k: u32,
    at: u32, // index of the first choice
}

@group(0) @binding(0) var<storage, read> slots: array<f32>;     // [tokens, top_k, d]
@group(0) @binding(1) var<storage, read> choices: array<u32>;   // [tokens, top_k, 2]: expert, gate
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [tokens, d]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col = id.x * 128u + lane;
    if (col >= p.d) {
        return;
    }
    var sum = 0.0;
    for (var r = 0u; r < p.top_k; r++) {
        let slot = id.y * p.top_k + r;
        let gate = bitcast<f32>(choices[p.at + 2u * slot + 1u]);
        if (gate != 0.0) {
            sum = fma(gate, slots[slot * p.d + col], sum);
        }
    }
    out[id.y * p.d + col] = sum;
}
