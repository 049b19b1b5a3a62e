// Sorts the choices of many tokens by expert, and writes jobs of up to MANY slots each. The order of slots within
// an expert varies from run to run. Every slot is computed separately, so no result depends on it. One workgroup.

struct Params {
    experts: u32,
    slots: u32,
    jobs: u32,  // dispatched jobs; those after the last one are marked
    table: u32, // the layer's first expert in the table
}

const MANY = 8u;
const JOB_WORDS = 24u;
const ENTRY_WORDS = 13u;
const MAX_EXPERTS = 1024u;
const NOWHERE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> choices: array<u32>;    // [slots, 2]: expert, gate
@group(0) @binding(1) var<storage, read> table: array<u32>;      // [experts of all layers, ENTRY_WORDS]
@group(0) @binding(2) var<storage, read_write> jobs: array<u32>; // [jobs, JOB_WORDS]
var<immediate> p: Params;

var<workgroup> counts: array<atomic<u32>, MAX_EXPERTS>;
var<workgroup> first_job: array<u32, MAX_EXPERTS>;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < p.experts; e += 128u) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var slot = lane; slot < p.slots; slot += 128u) {
        atomicAdd(&counts[choices[2u * slot]], 1u);
    }
    workgroupBarrier();
    if (lane == 0u) {
        var next = 0u;
        for (var e = 0u; e < p.experts; e++) {
            first_job[e] = next;
            next += (atomicLoad(&counts[e]) + MANY - 1u) / MANY;
        }
        for (var job = next; job < p.jobs; job++) {
            jobs[job * JOB_WORDS + 3u] = NOWHERE;
        }
    }
    workgroupBarrier();
    for (var e = lane; e < p.experts; e += 128u) {
        let count = atomicLoad(&counts[e]);
        for (var i = 0u; i * MANY < count; i++) {
            let at = (first_job[e] + i) * JOB_WORDS;
            for (var w = 0u; w < ENTRY_WORDS; w++) {
                jobs[at + w] = table[(p.table + e) * ENTRY_WORDS + w];
            }
            jobs[at + 13u] = min(MANY, count - i * MANY);
            jobs[at + 15u] = e;
        }
    }
    workgroupBarrier();
    for (var e = lane; e < p.experts; e += 128u) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    for (var slot = lane; slot < p.slots; slot += 128u) {
        let e = choices[2u * slot];
        let i = atomicAdd(&counts[e], 1u);
        jobs[(first_job[e] + i / MANY) * JOB_WORDS + 16u + i % MANY] = slot;
    }
}
