// Inputs of products as whole numbers of 8 bits, four a word, with a scale for every unit: those of the CPU's products
// (kernels/cpu/nested.rs), which has groups of 32 or 64 where there are units of 32 here.

#import inputs_unit

var<workgroup> x_tile: array<u32, TOKENS * COLS / 4u>;
var<workgroup> x_scales: array<f32, TOKENS * COLS / 32u>;
var<workgroup> x_sums: array<i32, TOKENS * COLS / 32u>; // of the whole numbers

// Brings COLS columns from `first` on into workgroup memory.
fn stage(first: u32, lane: u32) {
    workgroupBarrier();
    for (var i = lane; i < TOKENS * COLS / 32u; i += 128u) {
        let unit = read_unit(first, i);
        let inverse = select(0.0, 127.0 / unit.most, unit.most > 0.0);
        var sum = vec4<i32>();
        for (var j = 0u; j < 8u; j++) {
            let q = vec4<i32>(round(unit.x[j] * inverse));
            sum += q;
            x_tile[8u * i + j] = pack4xI8(q);
        }
        x_scales[i] = unit.most / 127.0;
        x_sums[i] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    workgroupBarrier();
}
