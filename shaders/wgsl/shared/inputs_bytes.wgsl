// Inputs of products as 8-bit integers, four per word, with a scale per unit.

#import prepared

var<workgroup> x_tile: array<array<vec4<u32>, 2>, TOKENS * UNITS>;
var<workgroup> x_scales: array<f32, TOKENS * UNITS>;
var<workgroup> x_sums: array<i32, TOKENS * UNITS>; // of the integers

// Loads the units from `first` on into workgroup memory.
fn stage(first: u32, units: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < 2u * TOKENS * UNITS; i += 128u) {
        let unit = min(first + i / 2u % UNITS, units - 1u);
        x_tile[i / 2u][i % 2u] = prepared_vector(i / (2u * UNITS), unit, i % 2u);
    }
    for (var i = lane; i < TOKENS * UNITS; i += 128u) {
        let unit = min(first + i % UNITS, units - 1u);
        x_scales[i] = bitcast<f32>(prepared_word(i / UNITS, units, unit, 0u));
        x_sums[i] = bitcast<i32>(prepared_word(i / UNITS, units, unit, 1u));
    }
    workgroupBarrier();
}

// Sixteen columns of the staged unit `at`: the first or the second half.
fn words_of(t: u32, at: u32, half: u32) -> vec4<u32> {
    return x_tile[t * UNITS + at][half];
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_scales[t * UNITS + at];
}

fn sum_of(t: u32, at: u32) -> i32 {
    return x_sums[t * UNITS + at];
}
