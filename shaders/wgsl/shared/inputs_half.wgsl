// Inputs of products in half precision: half the memory, so twice the columns are staged at a time.

#import prepared

var<workgroup> x_tile: array<array<vec4<f16>, 8>, TOKENS * UNITS>;
var<workgroup> x_scales: array<f32, TOKENS * UNITS>;
var<workgroup> x_sums: array<f32, TOKENS * UNITS>;

// Loads the units from `first` on into workgroup memory.
fn stage(first: u32, units: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < 4u * TOKENS * UNITS; i += 128u) {
        let unit = min(first + i / 4u % UNITS, units - 1u);
        let words = prepared_vector(i / (4u * UNITS), unit, i % 4u);
        let a = vec4(unpack2x16float(words.x), unpack2x16float(words.y));
        let b = vec4(unpack2x16float(words.z), unpack2x16float(words.w));
        x_tile[i / 4u][2u * (i % 4u)] = vec4<f16>(a);
        x_tile[i / 4u][2u * (i % 4u) + 1u] = vec4<f16>(b);
    }
    for (var i = lane; i < TOKENS * UNITS; i += 128u) {
        let unit = min(first + i % UNITS, units - 1u);
        x_scales[i] = bitcast<f32>(prepared_word(i / UNITS, units, unit, 0u));
        x_sums[i] = bitcast<f32>(prepared_word(i / UNITS, units, unit, 1u));
    }
    workgroupBarrier();
}

// Four columns of the staged unit `at`.
fn vector_of(t: u32, at: u32, j: u32) -> vec4<f16> {
    return x_tile[t * UNITS + at][j];
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_scales[t * UNITS + at];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sums[t * UNITS + at];
}
