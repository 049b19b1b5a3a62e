// Inputs of products as they are.

var<workgroup> x_tile: array<vec4<f32>, TOKENS * COLS / 4u>;
var<workgroup> x_sums: array<f32, TOKENS * COLS / 32u>;

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 4u; i += 128u) {
        let t = i / (COLS / 4u);
        let col = first + i % (COLS / 4u) * 4u;
        x_tile[i] = vec4(input(t, col), input(t, col + 1u), input(t, col + 2u), input(t, col + 3u));
    }
    workgroupBarrier();
    if (PLANES > 0u) {
        for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
            var sum = vec4<f32>();
            for (var j = 0u; j < 8u; j++) {
                sum += x_tile[8u * i + j];
            }
            x_sums[i] = (sum.x + sum.y) + (sum.z + sum.w);
        }
        workgroupBarrier();
    }
}
