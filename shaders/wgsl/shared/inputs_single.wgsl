// Inputs of products as they are.

#import one

var<workgroup> x_tile: array<vec4<f32>, TOKENS * COLS / 4u>;
var<workgroup> x_sums: array<f32, TOKENS * COLS / 32u>;

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 4u; i += 128u) {
        x_tile[i] = input(i / (COLS / 4u), first + i % (COLS / 4u) * 4u);
    }
    workgroupBarrier();
    if (PLANES > 0u) {
        for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
            var sum = vec4<f32>();
            for (var j = 0u; j < 8u; j++) {
                sum = plus(sum, x_tile[8u * i + j]);
            }
            x_sums[i] = sum_of_four(sum);
        }
        workgroupBarrier();
    }
}

// Four columns of the staged unit `at`.
fn vector_of(t: u32, at: u32, j: u32) -> vec4<f32> {
    return x_tile[t * (COLS / 4u) + 8u * at + j];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sums[t * (COLS / 32u) + at];
}
