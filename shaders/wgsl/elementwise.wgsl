// OP: x += y, x = y, x = silu(x) · y, x = gelu(x) · y, x = relu(x) · y, x = x · sigmoid(y) or
// x = x · softplus(y); y begins at `at`. One invocation: one value.

#import gelu

const ADD = 0u;
const COPY = 1u;
const SWIGLU = 2u;
const GEGLU = 3u;
const GATE = 4u;
const REGLU = 5u;
const SOFTPLUS = 6u;

struct Params {
    len: u32,
    at: u32,
    row: u32,    // adjacent values of y
    stride: u32, // distance of such rows in y
    each: u32,   // adjacent values of x to which one value of y applies
    scale: f32, // factor of the result
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
    let k = i / p.each;
    let value = y[p.at + k / p.row * p.stride + k % p.row];
    var result = value;
    if (OP == ADD) {
        result = x[i] + value;
    } else if (OP == GEGLU) {
        result = gelu(x[i]) * value;
    } else if (OP == REGLU) {
        result = select(x[i], 0.0, x[i] < 0.0) * value;
    } else if (OP == GATE) {
        result = x[i] / (1.0 + exp(-value));
    } else if (OP == SOFTPLUS) {
        result = x[i] * (max(value, 0.0) + log(1.0 + exp(-abs(value))));
    } else if (OP == SWIGLU) {
        result = x[i] / (1.0 + exp(-x[i])) * value;
    }
    x[i] = p.scale * result;
}
