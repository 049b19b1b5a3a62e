// Inputs of products in single precision.

#import prepared

// One vector more than a unit has, so that units that are read together begin in different banks.
var<workgroup> x_tile: array<array<vec4<f32>, 9>, TOKENS * UNITS>;
var<workgroup> x_sums: array<f32, TOKENS * UNITS>;

// Loads the units from `first` on into workgroup memory.
fn stage(first: u32, units: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < 8u * TOKENS * UNITS; i += 128u) {
        let unit = min(first + i / 8u % UNITS, units - 1u);
        x_tile[i / 8u][i % 8u] = bitcast<vec4<f32>>(prepared_vector(i / (8u * UNITS), unit, i % 8u));
    }
    if (PLANES > 0u && lane < TOKENS * UNITS) {
        let unit = min(first + lane % UNITS, units - 1u);
        x_sums[lane] = bitcast<f32>(prepared_word(lane / UNITS, units, unit, 0u));
    }
    workgroupBarrier();
}

// Four columns of the staged unit `at`.
fn vector_of(t: u32, at: u32, j: u32) -> vec4<f32> {
    return x_tile[t * UNITS + at][j];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sums[t * UNITS + at];
}
