// x += y, or x = y from `at` on (COPY). One invocation: one value.

struct Params {
    len: u32,
    at: u32,
}

@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) n: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (id.y * n.x + id.x) * 128u + lane;
    if (i >= p.len) {
        return;
    }
    if (COPY == 1u) {
        x[i] = y[p.at + i];
    } else {
        x[i] += y[p.at + i];
    }
}
