// hidden[slot] = activation of gate · x[token] and up · x[token] for each job's slots. One workgroup: ROWS rows of one job.

#import product
#import job
#import input
#import hidden
#import gelu

const REFINEMENTS = 5u; // binding
const MATRICES = 2u;

struct Params {
    d: u32,
    ff: u32,
    group: u32,    // of gate
    group_up: u32,
    top_k: u32, // slots per token
    first: u32, // the first job
    place: u32, // jobs in another buffer, or at another level, belong to another dispatch
    plain: u32, // whether hidden values stay unprepared, to be rotated
    experts: u32, // in the layer if they have biases; otherwise 0
    kind: u32,    // of the activation: 1 gelu, 2 relu, otherwise silu
    alpha: f32,   // of a clamped SwiGLU
    limit: f32,   // also of a clamped SwiGLU; 0 for a plain one
}

@group(0) @binding(4) var<storage, read> biases: array<f32>; // [experts, ff], [experts, ff], [experts, d]

var<immediate> p: Params;

var<private> job: u32;
var<private> count: u32;

fn source(t: u32) -> u32 {
    return job_slot(job, min(t, count - 1u)) / p.top_k;
}

fn input_cols() -> u32 {
    return p.d;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (job_place(p.first + id.y) != p.place) {
        return;
    }
    job = p.first + id.y;
    count = job_slots(job);
    let gate = job_matrix(job, 0u, p.ff, p.d, p.group);
    let up = job_matrix(job, 1u, p.ff, p.d, p.group_up);
    let results = multiply(gate, up, p.d, id.x, true, lane);
    var values: array<f32, RESULTS>;
    for (var i = 0u; i < RESULTS; i++) {
        var g = results[i].x;
        var u = results[i].y;
        if (p.experts > 0u) {
            let at = job_expert(job) * p.ff + min(ROWS * id.x + row_of(i, lane), p.ff - 1u);
            g += biases[at];
            u += biases[p.experts * p.ff + at];
        }
        if (p.kind == 1u) {
            values[i] = gelu(g) * u;
        } else if (p.kind == 2u) {
            values[i] = select(g, 0.0, g < 0.0) * u;
        } else if (p.limit > 0.0) {
            g = min(g, p.limit);
            u = clamp(u, -p.limit, p.limit);
            values[i] = g / (1.0 + exp(-p.alpha * g)) * (u + 1.0);
        } else {
            values[i] = g / (1.0 + exp(-g)) * u;
        }
    }
    write_hidden(values, id.x, lane);
}
