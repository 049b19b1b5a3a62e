// slots[slot] = down · hidden[slot] for the slots of each job. One workgroup: ROWS rows of one job.

#import product
#import job
#import input

const REFINEMENTS = 5u; // binding
const MATRICES = 1u;

struct Params {
    d: u32,
    ff: u32,
    group: u32,
    first: u32, // the first job
    place: u32, // jobs in another buffer, or at another level, belong to another dispatch
    experts: u32, // in the layer if they have biases; otherwise 0
}

@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [slots, d]
@group(0) @binding(4) var<storage, read> biases: array<f32>;    // [experts, ff], [experts, ff], [experts, d]
var<immediate> p: Params;

var<private> job: u32;
var<private> count: u32;

fn source(t: u32) -> u32 {
    return job_slot(job, min(t, count - 1u));
}

fn input_cols() -> u32 {
    return p.ff;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (job_place(p.first + id.y) != p.place) {
        return;
    }
    job = p.first + id.y;
    count = job_slots(job);
    let m = job_matrix(job, 2u, p.d, p.ff, p.group);
    let results = multiply(m, m, p.ff, id.x, true, lane);
    for (var i = 0u; i < RESULTS; i++) {
        let t = token_of(i, lane);
        let row = id.x * ROWS + row_of(i, lane);
        if (t < count && row < p.d) {
            var value = results[i].x;
            if (p.experts > 0u) {
                value += biases[2u * p.experts * p.ff + job_expert(job) * p.d + row];
            }
            out[job_slot(job, t) * p.d + row] = value;
        }
    }
}
