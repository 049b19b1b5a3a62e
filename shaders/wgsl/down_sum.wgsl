// out[token] += Σ gate · down · hidden[slot] over the token's jobs, in the order of their ranks; the gate is the job's or,
// where it says so, the sigmoid of the token's. One workgroup: 16 rows of one token. Several ranks are under way at once.

#import product
#import job
#import x

const REFINEMENTS = 5u; // binding
const MATRICES = 1u;

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

var<private> job: u32;
var<workgroup> rows: array<f32, PARTS * 16u>; // [ranks, 16]

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.ff) {
        return vec4<f32>();
    }
    return before(x_at(job_slot(job, 0u) * p.ff + col), col, p.ff);
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let units = (p.ff + 31u) / 32u;
    var sum = 0.0;
    for (var first = 0u; first < p.top_k; first += PARTS) {
        let ranks = min(PARTS, p.top_k - first);
        let jobs = p.first + id.y * p.top_k + first;
        // A slice's sums, of one rank each.
        var slices = vec4<f32>();
        for (var base = 0u; base < units; base += 32u) {
            let unit = base + lane / 4u;
            for (var r = 0u; r < PARTS; r++) {
                if (r < ranks) {
                    job = jobs + r;
                    let m = job_matrix(job, 2u, p.d, p.ff, p.group);
                    if (unit < units) {
                        take_unit(unit);
                    }
                    products[128u * r + lane] = product_of(m, id.x, unit, unit < units, lane);
                }
            }
            workgroupBarrier();
            for (var r = 0u; r < PARTS; r++) {
                if (r < ranks) {
                    slices[r] = add_slice(r, lane, slices[r]);
                }
            }
            workgroupBarrier();
        }
        products[lane] = slices;
        workgroupBarrier();
        if (lane < PARTS * 16u) {
            var all = 0.0;
            for (var s = 0u; s < SLICES; s++) {
                all += products[16u * s + lane % 16u][lane / 16u];
            }
            rows[lane] = all;
        }
        workgroupBarrier();
        for (var r = 0u; r < ranks; r++) {
            var gate = job_gate(jobs + r);
            if (p.gated == 1u) {
                gate = 1.0 / (1.0 + exp(-gates[id.y]));
            }
            sum = fma(gate, rows[16u * r + lane % 16u], sum);
        }
    }
    let row = id.x * 16u + lane;
    if (lane < 16u && row < p.d) {
        out[id.y * p.d + row] += sum;
    }
}
