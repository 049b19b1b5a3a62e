// x[row] *= sigmoid(gate[row]). One invocation: one value.

struct Params {
    d: u32,
}

@group(0) @binding(0) var<storage, read> gate: array<f32>;    // [rows]
@group(0) @binding(1) var<storage, read_write> x: array<f32>; // [rows, d]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col = id.x * 128u + lane;
    if (col < p.d) {
        x[id.y * p.d + col] *= 1.0 / (1.0 + exp(-gate[id.y]));
    }
}
