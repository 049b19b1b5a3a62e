// slots[slot] = down · hidden[slot] of the slots of each job; with SUM, out[token] += Σ gate · down · hidden over the
// token's jobs in the order of their ranks, the gate being the job's or, GATED, the sigmoid of the token's. One workgroup: 16 rows of one job, or of one token.

#import product
#import job

const REFINEMENTS = 5u; // binding

struct Params {
    d: u32,
    ff: u32,
    group: u32,
    top_k: u32, // with SUM, jobs per token
    first: u32,
    place: u32,
    gated: u32, // with SUM
}

@group(0) @binding(1) var<storage, read> hidden: array<f32>;    // [slots, ff]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [slots, d]; with SUM [tokens, d]
@group(0) @binding(4) var<storage, read> gates: array<f32>;     // [tokens]
var<immediate> p: Params;

var<private> job: u32;
var<private> count: u32;

fn input(t: u32, col: u32) -> f32 {
    if (col >= p.ff || t >= count) {
        return 0.0;
    }
    return hidden[job_slot(job, t) * p.ff + col];
}

fn product_of(tile: u32, lane: u32) -> f32 {
    let m = job_matrix(job, 2u, p.d, p.ff, p.group);
    var sums: Sums;
    for (var first = 0u; first < p.ff; first += COLS) {
        stage(first, lane);
        accumulate(m, tile, first, lane, &sums);
    }
    return total(&sums, lane);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = id.x * 16u + lane % 16u;
    if (SUM == 1u) {
        var sum = 0.0;
        count = 1u;
        for (var rank = 0u; rank < p.top_k; rank++) {
            job = p.first + id.y * p.top_k + rank;
            var gate = job_gate(job);
            if (p.gated == 1u) {
                gate = 1.0 / (1.0 + exp(-gates[id.y]));
            }
            sum = fma(gate, product_of(id.x, lane), sum);
        }
        if (lane < 16u && row < p.d) {
            out[id.y * p.d + row] += sum;
        }
    } else {
        if (job_place(p.first + id.y) != p.place) {
            return;
        }
        job = p.first + id.y;
        count = job_slots(job);
        let value = product_of(id.x, lane);
        if (lane / 16u < count && row < p.d) {
            out[job_slot(job, lane / 16u) * p.d + row] = value;
        }
    }
}
