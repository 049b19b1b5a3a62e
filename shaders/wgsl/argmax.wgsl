// The largest of some values, and its first index. One workgroup: SPAN values in, one pair out. The pairs of
// one dispatch are the values of the next.

#import order

struct Params {
    len: u32,
    pairs: u32, // whether values are pairs
}

const SPAN = 2048u;

@group(0) @binding(0) var<storage, read> values: array<u32>;     // [len], f32; or [len, 2]: place, f32
@group(0) @binding(1) var<storage, read_write> out: array<u32>;  // [workgroups, 2]: place, f32
var<immediate> p: Params;

var<workgroup> keys: array<u32, 128>;
var<workgroup> places: array<u32, 128>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var key = 0u;
    var place = 0xffffffffu;
    for (var i = id.x * SPAN + lane; i < min(p.len, (id.x + 1u) * SPAN); i += 128u) {
        let at = select(i, 2u * i + 1u, p.pairs == 1u);
        let other = order(values[at]);
        // Within a lane, the first of equal values is kept, also with pairs.
        if (other > key) {
            key = other;
            place = i;
            if (p.pairs == 1u) {
                place = values[2u * i];
            }
        }
    }
    keys[lane] = key;
    places[lane] = place;
    workgroupBarrier();
    for (var half = 64u; half > 0u; half = half / 2u) {
        if (lane < half) {
            let other = keys[lane + half];
            if (other > keys[lane] || (other == keys[lane] && places[lane + half] < places[lane])) {
                keys[lane] = other;
                places[lane] = places[lane + half];
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        out[2u * id.x] = places[0];
        out[2u * id.x + 1u] = unordered(keys[0]);
    }
}
