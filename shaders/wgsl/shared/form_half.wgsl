// Prepared inputs in half precision, relative to the largest magnitude of their unit, so that none overflows
// and small ones keep their precision. Also that magnitude, and the sum of the original values.

#import one
#import inputs_unit

const VALUES = 4u;
const STATS = 2u;

fn pack_unit(x: array<vec4<f32>, 8>) -> Packed {
    let unit = unit_of(x);
    let inverse = select(0.0, 1.0 / unit.most, unit.most > 0.0);
    var parts = unit.x;
    var packed: Packed;
    for (var j = 0u; j < 4u; j++) {
        let a = parts[2u * j] * inverse;
        let b = parts[2u * j + 1u] * inverse;
        packed.values[j] = vec4(
            pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw)
        );
    }
    packed.stats[0] = bitcast<u32>(unit.most);
    packed.stats[1] = bitcast<u32>(sum_of_unit(x));
    return packed;
}
