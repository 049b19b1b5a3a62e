// Inputs of products in half precision, as parts of the greatest magnitude of their unit: none is too large, and small ones
// keep their bits. Half the memory, so that twice the columns are staged at a time.

#import inputs_unit

var<workgroup> x_tile: array<vec4<f16>, TOKENS * COLS / 4u>;
var<workgroup> x_scales: array<f32, TOKENS * COLS / 32u>;
var<workgroup> x_sums: array<f32, TOKENS * COLS / 32u>;

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
        let unit = read_unit(i / (COLS / 32u), first + i % (COLS / 32u) * 32u);
        let inverse = select(0.0, 1.0 / unit.most, unit.most > 0.0);
        var sum = vec4<f32>();
        for (var j = 0u; j < 8u; j++) {
            sum += unit.x[j];
            x_tile[8u * i + j] = vec4<f16>(unit.x[j] * inverse);
        }
        x_scales[i] = unit.most;
        x_sums[i] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    workgroupBarrier();
}

// Four columns of the staged unit `at`.
fn vector_of(t: u32, at: u32, j: u32) -> vec4<f16> {
    return x_tile[t * (COLS / 4u) + 8u * at + j];
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_scales[t * (COLS / 32u) + at];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sums[t * (COLS / 32u) + at];
}
