// The gated delta rule, token by token: S ← γS; S ← S + k ⊗ β(v − Sᵀk); o = Sᵀq, where γ is one number or one per value of a key; or
// Mamba-2's rule, S ← γS + k ⊗ step · v; o = Sᵀq + skip · v. o replaces v. One workgroup: 128 columns of one head's memory, one per
// invocation. Columns do not depend on each other.

const MOST = 256u; // values of a key

struct Params {
    k_heads: u32,
    v_heads: u32,
    k_dim: u32,
    v_dim: u32,
    taps: u32,
    tokens: u32,
    values: u32,      // of a slot: rows that are kept, then the memory
    before_slot: u32, // the slot of the tokens before
    after_slot: u32,  // another, which is written
    before: u32,      // whether there are any before
    tiled: u32,       // whether value heads that share a key head lie apart
    decays: u32,      // decays of a token: one per head, or one per value of its key
    adds: u32,        // whether the rule is Mamba-2's
    lower: f32,       // negative if γ = exp(lower · sigmoid(−a · step)), 0 if γ = exp(a · softplus(step))
}

@group(0) @binding(0) var<storage, read> beta: array<f32>;          // [tokens, v_heads]
@group(0) @binding(1) var<storage, read> alpha: array<f32>;         // [tokens, decays]
@group(0) @binding(2) var<storage, read> fades: array<f32>;         // a [v_heads], dt [decays] and, with `adds`, skip [v_heads]
@group(0) @binding(3) var<storage, read_write> state: array<f32>;   // [slots, values]
@group(0) @binding(4) var<storage, read_write> mixed: array<f32>;   // [tokens, channels]
var<immediate> p: Params;

var<workgroup> q: array<f32, MOST>;
var<workgroup> k: array<f32, MOST>;
var<workgroup> fade: array<f32, MOST>;

// The length of a token's step, which may be negative here.
fn raw_step(t: u32, head: u32, i: u32) -> f32 {
    let part = select(head * p.k_dim + i, head, p.decays == p.v_heads);
    return alpha[t * p.decays + part] + fades[p.v_heads + part];
}

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}

// The factor γ of a part of the memory for a token's step.
fn decay(t: u32, head: u32, i: u32) -> f32 {
    let a = fades[head];
    let x = raw_step(t, head, i);
    if (p.lower < 0.0) {
        return exp(p.lower / (1.0 + exp(a * x)));
    }
    return exp(a * softplus(x));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = id.x;
    let column = id.y * 128u + lane;
    let keys = p.k_heads * p.k_dim;
    let channels = 2u * keys + p.v_heads * p.v_dim;
    let key_head = select(head / (p.v_heads / p.k_heads), head % p.k_heads, p.tiled == 1u);
    let memory = (p.taps - 1u) * channels + head * p.k_dim * p.v_dim + column;
    let after = p.after_slot * p.values + memory;
    var last = p.before_slot * p.values + memory;
    for (var t = 0u; t < p.tokens; t++) {
        let row = t * channels;
        workgroupBarrier();
        for (var i = lane; i < p.k_dim; i += 128u) {
            q[i] = mixed[row + key_head * p.k_dim + i];
            k[i] = mixed[row + keys + key_head * p.k_dim + i];
            fade[i] = decay(t, head, i);
        }
        workgroupBarrier();
        if (column < p.v_dim) {
            var share = 0.0;
            var skip = 0.0;
            if (p.adds == 1u) {
                share = softplus(raw_step(t, head, 0u));
                skip = fades[2u * p.v_heads + head];
            } else {
                share = 1.0 / (1.0 + exp(-beta[t * p.v_heads + head]));
            }
            let none = t == 0u && p.before == 0u;
            var held = 0.0;
            if (!none && p.adds == 0u) {
                for (var i = 0u; i < p.k_dim; i++) {
                    held = fma(k[i] * fade[i], state[last + i * p.v_dim], held);
                }
            }
            let at = row + 2u * keys + head * p.v_dim + column;
            let value = mixed[at];
            let wrong = share * (value - held);
            var read = 0.0;
            for (var i = 0u; i < p.k_dim; i++) {
                var old = 0.0;
                if (!none) {
                    old = state[last + i * p.v_dim];
                }
                let new_value = fma(fade[i], old, k[i] * wrong);
                state[after + i * p.v_dim] = new_value;
                read = fma(q[i], new_value, read);
            }
            mixed[at] = fma(skip, value, read);
        }
        last = after;
    }
}
