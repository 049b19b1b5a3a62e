// out[token] += Σ gate · down · hidden[slot] over the token's jobs, in order of rank. The gate is the job's
// or, if `gated`, the sigmoid of the token's. One workgroup: a quad of rows of one token, with two times four
// ranks and 32 units of each in flight; with fewer than four jobs per token, 128 units of one rank.

#import weights
#import inputs
#import one
#import unit
#import job
#import x

const REFINEMENTS = 5u; // binding
const SLICES = 8u;

struct Params {
    d: u32,
    ff: u32,
    group: u32,
    top_k: u32, // jobs per token
    first: u32, // the first job
    gated: u32,
}

@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [tokens, d]
@group(0) @binding(4) var<storage, read> gates: array<f32>;     // [tokens]
var<immediate> p: Params;

alias Sums = array<vec4<f32>, 1>;

var<private> slot: u32;
var<workgroup> products: array<vec4<f32>, 2u * 128u>; // [2, ranks, units]
var<workgroup> slices: array<f32, 2u * 128u>; // [2, ranks, slices, 4 rows]
var<workgroup> rows: array<f32, 2u * 16u>; // [2, ranks, 4 rows]

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.ff) {
        return vec4<f32>();
    }
    return x_of(slot, col, p.ff);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let ranks = select(1u, 4u, p.top_k >= 4u);
    let at_once = 128u / ranks;
    know_one(p.ff);
    let units = (p.ff + 31u) / 32u;
    // What an invocation multiplies, and what it sums: for one rank, the units of a slice in one row.
    let own = lane / at_once;
    let begin = select(lane / 32u * 32u, 0u, ranks == 1u);
    let slice = lane % 32u / 4u;
    let row = lane % 4u;
    var sum = 0.0;
    for (var first = 0u; first < p.top_k; first += 2u * ranks) {
        let jobs = p.first + id.y * p.top_k + first;
        let left = p.top_k - first;
        var so_far = vec2<f32>();
        for (var base = 0u; base < units; base += at_once) {
            let unit = base + lane % at_once;
            for (var i = 0u; i < 2u; i++) {
                let rank = i * ranks + own;
                var product: Sums;
                if (rank < left && unit < units) {
                    let m = job_matrix(jobs + rank, 2u, p.d, p.ff, p.group);
                    slot = job_slot(jobs + rank, 0u);
                    var x: array<vec4<f32>, 8>;
                    for (var j = 0u; j < 8u; j++) {
                        x[j] = input(0u, 32u * unit + 4u * j);
                    }
                    take_unit(x);
                    add_unit(m, id.x / 4u, unit, 0u, id.x % 4u, &product);
                }
                products[128u * i + lane] = product[0];
            }
            workgroupBarrier();
            for (var u = slice; u < at_once; u += SLICES) {
                so_far.x = plus_single(so_far.x, products[begin + u][row]);
                so_far.y = plus_single(so_far.y, products[128u + begin + u][row]);
            }
            workgroupBarrier();
        }
        slices[lane] = so_far.x;
        slices[128u + lane] = so_far.y;
        workgroupBarrier();
        if (lane < 32u) {
            var all = 0.0;
            for (var s = 0u; s < SLICES; s++) {
                all = plus_single(all, slices[lane / 4u * 32u + 4u * s + lane % 4u]);
            }
            rows[lane] = all;
        }
        workgroupBarrier();
        for (var r = 0u; r < min(2u * ranks, left); r++) {
            var gate = job_gate(jobs + r);
            if (p.gated == 1u) {
                gate = 1.0 / (1.0 + exp(-gates[id.y]));
            }
            sum = fma(gate, rows[16u * (r / ranks) + 4u * (r % ranks) + row], sum);
        }
    }
    let to = 4u * id.x + lane;
    if (lane < 4u && to < p.d) {
        out[id.y * p.d + to] += sum;
    }
}
