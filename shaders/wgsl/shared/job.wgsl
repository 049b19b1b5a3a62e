// The work of one expert, written by the host or by `route`: the offsets of its matrices, their corrections,
// the offsets of its refinements, and up to TOKENS slots, each a (token, rank) that chose it.

#import entry

const JOB_WORDS = 24u;

@group(0) @binding(2) var<storage, read> jobs: array<u32>; // [jobs, JOB_WORDS]

fn entry_word(at: u32) -> u32 {
    return jobs[at];
}

fn job_matrix(job: u32, m: u32, rows: u32, cols: u32, group: u32) -> Matrix {
    return entry_matrix(job * JOB_WORDS, m, rows, cols, group);
}

// The buffer of the matrices, and the number of planes that every expert has.
fn job_place(job: u32) -> u32 {
    return jobs[job * JOB_WORDS + 3u];
}

fn job_slots(job: u32) -> u32 {
    return jobs[job * JOB_WORDS + 13u];
}

fn job_gate(job: u32) -> f32 {
    return bitcast<f32>(jobs[job * JOB_WORDS + 14u]);
}

// The expert's index in the layer.
fn job_expert(job: u32) -> u32 {
    return jobs[job * JOB_WORDS + 15u];
}

fn job_slot(job: u32, i: u32) -> u32 {
    return jobs[job * JOB_WORDS + 16u + i];
}
