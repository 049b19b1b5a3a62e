// Softmax of the router's logits and the best experts of each token, best first; ties go to the lower index. With a
// table of the layer's experts, writes the job of every slot as well. What the last tokens chose goes to a history that
// the host reads when it reads their logits. One workgroup: one token.

struct Params {
    experts: u32,
    top_k: u32,
    renormalize: u32,
    scale: f32,
    jobs: u32,  // whether to write jobs
    table: u32, // the layer's first expert in the table
    at: u32,    // where the layer's part of the history begins
    first: u32, // the first token that goes there
}

const JOB_WORDS = 24u;
const ENTRY_WORDS = 13u;
const MAX_EXPERTS = 1024u;
const MAX_TOP_K = 64u;

@group(0) @binding(0) var<storage, read> logits: array<u32>;        // [tokens, experts], f32
@group(0) @binding(1) var<storage, read> table: array<u32>;         // [experts of all layers, ENTRY_WORDS]
@group(0) @binding(2) var<storage, read_write> choices: array<u32>; // [tokens, top_k, 2]: expert, gate
@group(0) @binding(3) var<storage, read_write> jobs: array<u32>;    // [tokens, top_k, JOB_WORDS]
@group(0) @binding(4) var<storage, read_write> history: array<u32>; // [layers, tokens, top_k, 2]: expert, gate
var<immediate> p: Params;

var<workgroup> bits: array<u32, MAX_EXPERTS>;
var<workgroup> exps: array<f32, MAX_EXPERTS>;
var<workgroup> chosen: array<u32, MAX_TOP_K>;
var<workgroup> gates: array<f32, MAX_TOP_K>;

// A total order of floats, NaN included, as unsigned numbers.
fn ordered(b: u32) -> u32 {
    return select(b | 0x80000000u, ~b, (b >> 31u) == 1u);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < p.experts; e += 128u) {
        bits[e] = logits[id.x * p.experts + e];
    }
    workgroupBarrier();
    var high = 0u;
    for (var e = 0u; e < p.experts; e++) {
        high = max(high, ordered(bits[e]));
    }
    let highest = bitcast<f32>(select(~high, high & 0x7fffffffu, (high >> 31u) == 1u));
    for (var e = lane; e < p.experts; e += 128u) {
        exps[e] = exp(bitcast<f32>(bits[e]) - highest);
        // An expert's rank is the number of those before it.
        let own = ordered(bits[e]);
        var rank = 0u;
        for (var other = 0u; other < p.experts; other++) {
            let key = ordered(bits[other]);
            rank += u32(key > own || (key == own && other < e));
        }
        if (rank < p.top_k) {
            chosen[rank] = e;
        }
    }
    workgroupBarrier();
    if (lane == 0u) {
        var total = 0.0;
        for (var e = 0u; e < p.experts; e++) {
            total += exps[e];
        }
        var sum = 0.0;
        for (var r = 0u; r < p.top_k; r++) {
            gates[r] = exps[chosen[r]] / total;
            sum += gates[r];
        }
        let scale = select(p.scale, p.scale / sum, p.renormalize == 1u && sum > 0.0);
        for (var r = 0u; r < p.top_k; r++) {
            gates[r] = gates[r] * scale;
        }
    }
    workgroupBarrier();
    for (var r = lane; r < p.top_k; r += 128u) {
        let slot = id.x * p.top_k + r;
        choices[2u * slot] = chosen[r];
        choices[2u * slot + 1u] = bitcast<u32>(gates[r]);
        if (id.x >= p.first) {
            let at = p.at + 2u * (slot - p.first * p.top_k);
            history[at] = chosen[r];
            history[at + 1u] = bitcast<u32>(gates[r]);
        }
        if (p.jobs == 1u) {
            let entry = (p.table + chosen[r]) * ENTRY_WORDS;
            for (var i = 0u; i < ENTRY_WORDS; i++) {
                jobs[slot * JOB_WORDS + i] = table[entry + i];
            }
            jobs[slot * JOB_WORDS + 13u] = 1u;
            jobs[slot * JOB_WORDS + 14u] = bitcast<u32>(gates[r]);
            jobs[slot * JOB_WORDS + 16u] = slot;
        }
    }
}
