// Sums and maxima over the 128 invocations of a workgroup, through its memory. Neighbours are added first, then pairs of
// neighbours, and so on: the order of reduce_subgroup.wgsl, so the results are bit-identical.

struct Own {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> lanes: array<f32, 128>;

// An invocation's index in the workgroup.
fn lane_of(own: Own) -> u32 {
    return own.index;
}

// Stores values so that halving adds neighbours first, without bank conflicts.
fn lay_out(value: f32, lane: u32) {
    workgroupBarrier();
    lanes[reverseBits(lane) >> 25u] = value;
    workgroupBarrier();
}

fn sum_of_all(value: f32, lane: u32) -> f32 {
    lay_out(value, lane);
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (lane < half) {
            lanes[lane] = lanes[lane] + lanes[lane + half];
        }
        workgroupBarrier();
    }
    return lanes[0];
}

fn max_of_all(value: f32, lane: u32) -> f32 {
    lay_out(value, lane);
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (lane < half) {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
        workgroupBarrier();
    }
    return lanes[0];
}
