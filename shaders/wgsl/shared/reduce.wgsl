// Sums and maxima over the 128 invocations of a workgroup, in one order whatever the subgroup size.

var<workgroup> lanes: array<f32, 128>;

fn sum_of_all(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    lanes[lane] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (lane < half) {
            lanes[lane] = lanes[lane] + lanes[lane + half];
        }
        workgroupBarrier();
    }
    return lanes[0];
}

fn max_of_all(value: f32, lane: u32) -> f32 {
    workgroupBarrier();
    lanes[lane] = value;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (lane < half) {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
        workgroupBarrier();
    }
    return lanes[0];
}
