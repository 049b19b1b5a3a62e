// Sums and maxima over the 128 invocations of a workgroup, by subgroups of any power of two up to 128. One
// value per subgroup goes through memory, repeatedly until one subgroup has all remaining values.
//
// Sums are exchanges with a neighbour, a pair, and so on, instead of subgroupAdd, whose order the driver
// chooses. A driver may compile two kernels for subgroups of two sizes, and a token must get the same bits
// alone and among others. The results are also bit-identical to reduce_tree.wgsl.

struct Own {
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_size) size: u32,
}

var<private> size: u32;
var<workgroup> lanes: array<f32, 128>;

// An invocation's index in the workgroup. The driver chooses how subgroups map to local indices; with this
// index, a subgroup's invocations are neighbours.
fn lane_of(own: Own) -> u32 {
    size = own.size;
    return own.subgroup * size + own.place;
}

// One of `left` values, of which every subgroup had `size`: lane by lane, wrapping around if there are more lanes.
fn pass_on(value: f32, left: u32, lane: u32) -> f32 {
    workgroupBarrier();
    if (lane < left && lane % size == 0u) {
        lanes[lane / size] = value;
    }
    workgroupBarrier();
    return lanes[lane % (left / size)];
}

fn sum_of_all(value: f32, lane: u32) -> f32 {
    var sum = value;
    var left = 128u;
    loop {
        for (var step = 1u; step < min(size, left); step = step * 2u) {
            sum += subgroupShuffleXor(sum, step);
        }
        if (left <= size) {
            break;
        }
        sum = pass_on(sum, left, lane);
        left = left / size;
    }
    return sum;
}

fn max_of_all(value: f32, lane: u32) -> f32 {
    var highest = subgroupMax(value);
    for (var left = 128u; left > size; left = left / size) {
        highest = subgroupMax(pass_on(highest, left, lane));
    }
    return highest;
}
