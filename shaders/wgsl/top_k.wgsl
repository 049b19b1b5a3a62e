// The k largest of some values with their indices, largest first, ties by lowest index. One workgroup: SPAN
// values in, sorted, k pairs out. The pairs of one dispatch are the values of the next. NaN has no index.

#import order

struct Params {
    len: u32,
    pairs: u32, // whether values are pairs
    k: u32,
}

const SPAN = 1024u;

@group(0) @binding(0) var<storage, read> values: array<u32>;    // [len], f32; or [len, 2]: place, f32
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [workgroups, k, 2]: place, f32
var<immediate> p: Params;

var<workgroup> keys: array<u32, SPAN>;
var<workgroup> places: array<u32, SPAN>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < SPAN; i += 128u) {
        let index = id.x * SPAN + i;
        var key = 0u;
        var place = index;
        if (index < p.len) {
            let at = select(index, 2u * index + 1u, p.pairs == 1u);
            key = order(values[at]);
            if (p.pairs == 1u) {
                place = values[2u * index];
            }
        }
        keys[i] = key;
        places[i] = select(place, 0xffffffffu, key == 0u);
    }
    // Bitonic sort: runs of `size`, descending and ascending in turn, are merged by exchanges over `stride`.
    for (var size = 2u; size <= SPAN; size = size * 2u) {
        for (var stride = size / 2u; stride > 0u; stride = stride / 2u) {
            workgroupBarrier();
            for (var i = lane; i < SPAN / 2u; i += 128u) {
                let low = 2u * i - (i & (stride - 1u));
                let high = low + stride;
                let a = keys[low];
                let b = keys[high];
                let before = b > a || (a == b && places[high] < places[low]);
                if (before == ((low & size) == 0u)) {
                    let place = places[low];
                    keys[low] = b;
                    places[low] = places[high];
                    keys[high] = a;
                    places[high] = place;
                }
            }
        }
    }
    workgroupBarrier();
    for (var r = lane; r < p.k; r += 128u) {
        let to = 2u * (id.x * p.k + r);
        out[to] = places[r];
        out[to + 1u] = unordered(keys[r]);
    }
}
