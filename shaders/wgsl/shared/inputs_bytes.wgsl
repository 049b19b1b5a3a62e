// Inputs of products as whole numbers of 8 bits, four a word, with a scale for every unit.

#import inputs_unit

var<workgroup> x_tile: array<u32, TOKENS * COLS / 4u>;
var<workgroup> x_scales: array<f32, TOKENS * COLS / 32u>;
var<workgroup> x_sums: array<i32, TOKENS * COLS / 32u>; // of the whole numbers

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
        let unit = read_unit(i / (COLS / 32u), first + i % (COLS / 32u) * 32u);
        let bytes = bytes_of(unit);
        for (var j = 0u; j < 8u; j++) {
            x_tile[8u * i + j] = bytes.words[j];
        }
        x_scales[i] = bytes.scale;
        x_sums[i] = bytes.sum;
    }
    workgroupBarrier();
}

// Four columns of the staged unit `at`.
fn word_of(t: u32, at: u32, j: u32) -> u32 {
    return x_tile[t * (COLS / 4u) + 8u * at + j];
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_scales[t * (COLS / 32u) + at];
}

fn sum_of(t: u32, at: u32) -> i32 {
    return x_sums[t * (COLS / 32u) + at];
}
