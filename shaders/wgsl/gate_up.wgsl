// hidden[slot] = silu(gate · x[token]) ⊙ (up · x[token]) of the slots of each job. One workgroup: 16 rows of one job.

#import product
#import job

const REFINEMENTS = 4u; // binding

struct Params {
    d: u32,
    ff: u32,
    group: u32,    // of gate
    group_up: u32,
    top_k: u32, // slots per token
    first: u32, // the first job
    place: u32, // jobs that lie elsewhere, or at another level, are left to another dispatch
}

@group(0) @binding(1) var<storage, read> x: array<f32>;            // [tokens, d]
@group(0) @binding(3) var<storage, read_write> hidden: array<f32>; // [slots, ff]
var<immediate> p: Params;

var<private> job: u32;
var<private> count: u32;

fn input(t: u32, col: u32) -> f32 {
    if (col >= p.d || t >= count) {
        return 0.0;
    }
    return x[job_slot(job, t) / p.top_k * p.d + col];
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
    var gates: Sums;
    var ups: Sums;
    for (var first = 0u; first < p.d; first += COLS) {
        stage(first, lane);
        accumulate(gate, id.x, first, lane, &gates);
        accumulate(up, id.x, first, lane, &ups);
    }
    let g = total(&gates, lane);
    let u = total(&ups, lane);
    let t = lane / 16u;
    let row = id.x * 16u + lane % 16u;
    if (t < count && row < p.ff) {
        hidden[job_slot(job, t) * p.ff + row] = g / (1.0 + exp(-g)) * u;
    }
}
