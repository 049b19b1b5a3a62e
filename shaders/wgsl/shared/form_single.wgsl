// Prepared inputs unchanged: 32 values of a unit, and their sum.

#import one

const VALUES = 8u;
const STATS = 1u;

fn pack_unit(x: array<vec4<f32>, 8>) -> Packed {
    var unit = x;
    var packed: Packed;
    for (var j = 0u; j < 8u; j++) {
        packed.values[j] = bitcast<vec4<u32>>(unit[j]);
    }
    packed.stats[0] = bitcast<u32>(sum_of_unit(x));
    return packed;
}
