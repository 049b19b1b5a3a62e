// Hidden values of a job's slots in the form that `down` reads, or `[slots, ff]` if they have to be rotated first.

const TO = 3u; // binding

#import write_prepared

// Writes the hidden values of a block of rows, which are whole units.
fn write_hidden(values: array<f32, RESULTS>, block: u32, lane: u32) {
    var all = values;
    for (var i = 0u; i < RESULTS; i++) {
        let row = row_of(i, lane);
        let value = select(0.0, all[i], ROWS * block + row < p.ff);
        products[(token_of(i, lane) * ROWS + row) / 4u][row % 4u] = value;
    }
    workgroupBarrier();
    let t = lane / (ROWS / 32u);
    let unit = lane % (ROWS / 32u);
    if (t < count && ROWS / 32u * block + unit < units_of(p.ff)) {
        var x: array<vec4<f32>, 8>;
        for (var j = 0u; j < 8u; j++) {
            x[j] = products[(t * ROWS + 32u * unit) / 4u + j];
        }
        if (p.plain == 1u) {
            // The width of a rotated row is a multiple of a unit.
            for (var j = 0u; j < 8u; j++) {
                to[(job_slot(job, t) * p.ff + ROWS * block + 32u * unit) / 4u + j] = bitcast<vec4<u32>>(x[j]);
            }
        } else {
            write_unit(job_slot(job, t), p.ff, ROWS / 32u * block + unit, x);
        }
    }
}
