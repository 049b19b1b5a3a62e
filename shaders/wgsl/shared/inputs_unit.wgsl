// A unit of 32 inputs in one invocation, which can then compute the largest: for formats with a scale per unit.

struct Unit {
    x: array<vec4<f32>, 8>,
    most: f32, // the largest magnitude, or 0 for a negligible one
}

fn unit_of(x: array<vec4<f32>, 8>) -> Unit {
    var unit = Unit(x, 0.0);
    var most = vec4<f32>();
    for (var j = 0u; j < 8u; j++) {
        most = max(most, abs(unit.x[j]));
    }
    unit.most = max(max(most.x, most.y), max(most.z, most.w));
    // A smaller value would overflow the quotient.
    if (unit.most < 1.0e-30) {
        unit.most = 0.0;
    }
    return unit;
}

// A unit as 8-bit integers, like those of the CPU's products (kernels/cpu/nested.rs), which have groups of 32
// or 64 instead of units of 32.
struct Bytes {
    words: array<u32, 8>,
    scale: f32,
    sum: i32, // of the integers
}

fn bytes_of(unit: Unit) -> Bytes {
    let inverse = select(0.0, 127.0 / unit.most, unit.most > 0.0);
    var x = unit.x;
    var bytes: Bytes;
    var sum = vec4<i32>();
    for (var j = 0u; j < 8u; j++) {
        let q = vec4<i32>(round(x[j] * inverse));
        sum += q;
        bytes.words[j] = pack4xI8(q);
    }
    bytes.scale = unit.most / 127.0;
    bytes.sum = (sum.x + sum.y) + (sum.z + sum.w);
    return bytes;
}
