// Weights from the router's logits, and the best experts of each token, best first; ties go to the
// lower index. With a table of the layer's experts, also writes the job of every slot. The choices of the
// last tokens go to a history, which the host reads back with their logits. One workgroup: one token.

#import choose

struct Params {
    experts: u32,
    top_k: u32,
    renormalize: u32,
    scale: f32,
    scaled: u32, // whether experts have factors for their gates
    jobs: u32,  // whether to write jobs
    table: u32, // the layer's first expert in the table
    at: u32,    // index of the layer's part in the history
    first: u32, // the first token in the history
    kind: u32,    // SOFTMAX, SIGMOID or MIXER
    eps: f32,     // SIGMOID: added to the sum; MIXER: how far a logit may be below the highest
    biased: u32,  // whether experts are chosen with a bias
    groups: u32,  // of neighbouring experts, at most MAX_GROUPS
    kept: u32,    // groups from which experts are chosen
}

const SOFTMAX = 0u; // over all experts
const SIGMOID = 1u; // of each logit
const MIXER = 2u;   // a softmax for each choice, over the best experts that no better choice took
const JOB_WORDS = 24u;
const ENTRY_WORDS = 13u;
const MAX_EXPERTS = 1024u;
const MAX_GROUPS = 64u;

@group(0) @binding(0) var<storage, read> logits: array<u32>;        // [tokens, experts], f32
@group(0) @binding(1) var<storage, read> table: array<u32>;         // [experts of all layers, ENTRY_WORDS]
@group(0) @binding(2) var<storage, read_write> choices: array<u32>; // [tokens, top_k, 2]: expert, gate
@group(0) @binding(3) var<storage, read_write> jobs: array<u32>;    // [tokens, top_k, JOB_WORDS]
@group(0) @binding(4) var<storage, read_write> history: array<u32>; // [layers, tokens, top_k, 2]: expert, gate
@group(0) @binding(5) var<storage, read> scales: array<f32>;        // [experts]
@group(0) @binding(6) var<storage, read> bias: array<f32>;          // [experts]
var<immediate> p: Params;

var<workgroup> scores: array<f32, MAX_GROUPS>;
var<workgroup> softmax: vec2<f32>; // the highest logit, and the sum of all exponentials

// What weights are divided by where a softmax is chosen with a bias.
fn measure(token: u32, lane: u32) {
    if (lane == 0u) {
        var high = -3.4e38;
        for (var e = 0u; e < p.experts; e++) {
            high = max(high, bitcast<f32>(logit(token, e)));
        }
        var sum = 0.0;
        for (var e = 0u; e < p.experts; e++) {
            sum += exp(bitcast<f32>(logit(token, e)) - high);
        }
        softmax = vec2(high, sum);
    }
    workgroupBarrier();
}

fn logit(token: u32, e: u32) -> u32 {
    return logits[token * p.experts + e];
}

fn sigmoid_of(token: u32, e: u32) -> f32 {
    return 1.0 / (1.0 + exp(-bitcast<f32>(logit(token, e))));
}

// An expert's score for the choice, regardless of its group.
fn own_standing(token: u32, e: u32) -> u32 {
    if (p.kind == MIXER || (p.kind == SOFTMAX && p.biased == 0u)) {
        return logit(token, e);
    }
    var score = 0.0;
    if (p.kind == SIGMOID) {
        score = sigmoid_of(token, e);
    } else {
        score = exp(bitcast<f32>(logit(token, e)) - softmax.x) / softmax.y;
    }
    if (p.biased == 1u) {
        score += bias[e];
    }
    return bitcast<u32>(score);
}

// The score of each group: that of its best expert or, with sigmoids, the sum of its best two.
fn score_groups(token: u32, lane: u32) {
    let size = p.experts / p.groups;
    for (var g = lane; g < p.groups; g += 128u) {
        var best = -3.4e38;
        var second = -3.4e38;
        for (var e = g * size; e < (g + 1u) * size; e++) {
            let x = bitcast<f32>(own_standing(token, e));
            second = max(second, min(x, best));
            best = max(x, best);
        }
        scores[g] = select(best, best + second, p.kind == SIGMOID && size > 1u);
    }
    workgroupBarrier();
}

// The lowest possible score if the expert's group is not among the best; ties go to the lower group.
fn standing(token: u32, e: u32) -> u32 {
    if (p.groups > 1u) {
        let own = e / (p.experts / p.groups);
        var before = 0u;
        for (var g = 0u; g < p.groups; g++) {
            let ahead = scores[g] > scores[own] || (scores[g] == scores[own] && g < own);
            before += select(0u, 1u, ahead);
        }
        if (before >= p.kept) {
            return 0xff800000u;
        }
    }
    return own_standing(token, e);
}

// `weigh` for sigmoids.
fn weigh_each(token: u32, lane: u32) {
    var sum = 0.0;
    for (var r = 0u; r < p.top_k; r++) {
        sum += sigmoid_of(token, chosen[r]);
    }
    let scale = select(p.scale, p.scale / (sum + p.eps), p.renormalize == 1u);
    for (var r = lane; r < p.top_k; r += 128u) {
        gates[r] = sigmoid_of(token, chosen[r]) * scale;
    }
    workgroupBarrier();
}

fn is_taken(e: u32, rank: u32) -> bool {
    var taken = false;
    for (var r = 0u; r < rank; r++) {
        taken = taken || chosen[r] == e;
    }
    return taken;
}

// `weigh` for MIXER. The best expert left is the choice itself.
fn weigh_mixed(token: u32, lane: u32) {
    for (var r = lane; r < p.top_k; r += 128u) {
        let high = bitcast<f32>(logit(token, chosen[r]));
        var sum = 0.0;
        for (var e = 0u; e < p.experts; e++) {
            let x = bitcast<f32>(logit(token, e));
            if (!is_taken(e, r) && (high - x) / max(abs(x), high) <= p.eps) {
                sum += exp(x - high);
            }
        }
        gates[r] = p.scale / sum;
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    if (p.kind == SOFTMAX && p.biased == 1u) {
        measure(id.x, lane);
    }
    if (p.groups > 1u) {
        score_groups(id.x, lane);
    }
    choose(id.x, lane);
    if (p.kind == SIGMOID) {
        weigh_each(id.x, lane);
    } else if (p.kind == MIXER) {
        weigh_mixed(id.x, lane);
    } else {
        weigh(id.x, lane);
    }
    for (var r = lane; r < p.top_k; r += 128u) {
        let slot = id.x * p.top_k + r;
        var factor = 1.0;
        if (p.scaled == 1u) {
            factor = scales[chosen[r]];
        }
        let gate = bitcast<u32>(gates[r] * factor);
        choices[2u * slot] = chosen[r];
        choices[2u * slot + 1u] = gate;
        if (id.x >= p.first) {
            let at = p.at + 2u * (slot - p.first * p.top_k);
            history[at] = chosen[r];
            history[at + 1u] = gate;
        }
        if (p.jobs == 1u) {
            jobs[slot * JOB_WORDS + 13u] = 1u;
            jobs[slot * JOB_WORDS + 14u] = gate;
            jobs[slot * JOB_WORDS + 15u] = chosen[r];
            jobs[slot * JOB_WORDS + 16u] = slot;
        }
    }
    if (p.jobs == 1u) {
        for (var i = lane; i < p.top_k * ENTRY_WORDS; i += 128u) {
            let r = i / ENTRY_WORDS;
            let word = i % ENTRY_WORDS;
            let entry = (p.table + chosen[r]) * ENTRY_WORDS;
            jobs[(id.x * p.top_k + r) * JOB_WORDS + word] = table[entry + word];
        }
    }
}
