// Prepared inputs as 8-bit integers, four per word, and per unit a scale and the sum of its integers.

#import inputs_unit

const VALUES = 2u;
const STATS = 2u;

fn pack_unit(x: array<vec4<f32>, 8>) -> Packed {
    let bytes = bytes_of(unit_of(x));
    var words = bytes.words;
    var packed: Packed;
    for (var j = 0u; j < 2u; j++) {
        packed.values[j] = vec4(words[4u * j], words[4u * j + 1u], words[4u * j + 2u], words[4u * j + 3u]);
    }
    packed.stats[0] = bitcast<u32>(bytes.scale);
    packed.stats[1] = bitcast<u32>(bytes.sum);
    return packed;
}
