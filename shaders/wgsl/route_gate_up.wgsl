// `route` and `gate_up` of one token in one launch, if all experts are in one buffer. Every workgroup computes the choice
// itself, and the first of each expert writes the job that `down_sum` reads. One workgroup: ROWS rows of one expert.

#import product
#import entry
#import choose
#import x

const REFINEMENTS = 7u; // binding
const MATRICES = 2u;
const JOB_WORDS = 24u;
const MAX_EXPERTS = 512u; // more would not fit beside the inputs

struct Params {
    d: u32,
    ff: u32,
    group: u32,    // of gate
    group_up: u32,
    experts: u32,
    top_k: u32,
    renormalize: u32,
    scale: f32,
    table: u32, // the layer's first expert in the table
    kept: u32,  // whether the choices go to the history
    at: u32,    // index of the layer's part in the history
}

@group(0) @binding(2) var<storage, read> logits: array<u32>;        // [experts], f32
@group(0) @binding(3) var<storage, read> table: array<u32>;         // [experts of all layers, ENTRY_WORDS]
@group(0) @binding(4) var<storage, read_write> hidden: array<f32>;  // [top_k, ff]
@group(0) @binding(5) var<storage, read_write> jobs: array<u32>;    // [top_k, JOB_WORDS]
@group(0) @binding(6) var<storage, read_write> history: array<u32>; // [layers, top_k, 2]: expert, gate
var<immediate> p: Params;

fn logit(token: u32, e: u32) -> u32 {
    return logits[e];
}

fn standing(token: u32, e: u32) -> u32 {
    return logit(token, e);
}

fn entry_word(at: u32) -> u32 {
    return table[at];
}

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.d) {
        return vec4<f32>();
    }
    return x_of(0u, col, p.d);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    choose(0u, lane);
    let rank = id.y;
    let entry = (p.table + chosen[rank]) * ENTRY_WORDS;
    let gate = entry_matrix(entry, 0u, p.ff, p.d, p.group);
    let up = entry_matrix(entry, 1u, p.ff, p.d, p.group_up);
    let results = multiply(gate, up, p.d, id.x, true, lane);
    let row = id.x * ROWS + row_of(0u, lane);
    if (token_of(0u, lane) == 0u && row < p.ff) {
        let g = results[0].x;
        hidden[rank * p.ff + row] = g / (1.0 + exp(-g)) * results[0].y;
    }
    if (id.x > 0u) {
        return;
    }
    weigh(0u, lane);
    let job = rank * JOB_WORDS;
    for (var word = lane; word < ENTRY_WORDS; word += 128u) {
        jobs[job + word] = table[entry + word];
    }
    if (lane == 0u) {
        let weight = bitcast<u32>(gates[rank]);
        jobs[job + 13u] = 1u;
        jobs[job + 14u] = weight;
        jobs[job + 16u] = rank;
        if (p.kept == 1u) {
            history[p.at + 2u * rank] = chosen[rank];
            history[p.at + 2u * rank + 1u] = weight;
        }
    }
}
