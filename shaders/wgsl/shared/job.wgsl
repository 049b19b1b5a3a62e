// The work of one expert as the host or `route` writes it: where its matrices lie, how they are corrected, where its
// refinements lie, and up to TOKENS slots, each a (token, rank) that chose it.

const JOB_WORDS = 24u;

@group(0) @binding(2) var<storage, read> jobs: array<u32>; // [jobs, JOB_WORDS]

fn job_matrix(job: u32, m: u32, rows: u32, cols: u32, group: u32) -> Matrix {
    let at = job * JOB_WORDS;
    let alpha = bitcast<f32>(jobs[at + 4u + 2u * m]);
    let beta = bitcast<f32>(jobs[at + 5u + 2u * m]);
    var found = matrix(jobs[at + m], rows, cols, group, alpha, beta);
    let top = jobs[at + 10u + m];
    found.top = select(top / 4u, top, top == 0xffffffffu);
    return found;
}

// Which buffer the matrices lie in, and how many of their planes every expert has.
fn job_place(job: u32) -> u32 {
    return jobs[job * JOB_WORDS + 3u];
}

fn job_slots(job: u32) -> u32 {
    return jobs[job * JOB_WORDS + 13u];
}

fn job_gate(job: u32) -> f32 {
    return bitcast<f32>(jobs[job * JOB_WORDS + 14u]);
}

fn job_slot(job: u32, i: u32) -> u32 {
    return jobs[job * JOB_WORDS + 16u + i];
}
