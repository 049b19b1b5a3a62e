// Hidden values of a job's slot.

@group(0) @binding(3) var<storage, read_write> hidden: array<f32>; // [slots, ff]

// Writes the hidden values of a block of rows.
fn write_hidden(values: array<f32, RESULTS>, block: u32, lane: u32) {
    let row = ROWS * block + row_of(0u, lane);
    if (token_of(0u, lane) == 0u && row < p.ff) {
        hidden[job_slot(job, 0u) * p.ff + row] = values[0];
    }
}
