// Attention of one query head, which is in `query`, over the positions up to `last`: an online softmax over tiles of 128
// positions. Tiles begin at the first position that is seen, so the result does not depend on what else is in the call.
//
// Whoever imports this has parameters `head_dim` and `window` (0 for none), an array `out`, `fn key_at(kv_head: u32, i: u32, pos:
// u32) -> Cell` and `fn value_at`, cell `i` of a position's key and value, and where OWN is 1 those of the last position,
// which are not in the cache: `fn own_key(i: u32) -> Cell` and `fn own_value`.

#import kv
#import reduce

const MAX_CELLS = 128u;
var<workgroup> query: array<vec4<f32>, MAX_CELLS>;
var<workgroup> weight: array<f32, 128>;
var<workgroup> parts: array<vec4<f32>, 128>;

// Cells that are read before the first of them is used.
const AT_ONCE = 16u;

// The query times the key of a position.
fn score_of(kv_head: u32, cells: u32, pos: u32) -> f32 {
    var dots = 0.0;
    for (var i = 0u; i < cells; i += AT_ONCE) {
        var some: array<Cell, AT_ONCE>;
        for (var j = 0u; j < AT_ONCE; j++) {
            some[j] = key_at(kv_head, min(i + j, cells - 1u), pos);
        }
        for (var j = 0u; j < AT_ONCE; j++) {
            if (i + j < cells) {
                dots += dot(query[i + j], unpack(some[j]));
            }
        }
    }
    return dots;
}

// Writes the head's result to `out` from `at` on.
fn attend(kv_head: u32, last: u32, at: u32, lane: u32) {
    let cells = (p.head_dim + 3u) / 4u;
    // Positions in the cache.
    let end = last + 1u - OWN;
    var first = 0u;
    if (p.window > 0u && last + 1u > p.window) {
        first = last + 1u - p.window;
    }
    // For the values, invocations stand in groups of a head's cells, each group taking every so many positions.
    let groups = 128u / cells;
    let cell = lane % cells;
    let group = lane / cells;
    var highest = -3.0e38;
    var total = 0.0;
    var sum = vec4<f32>();
    for (var tile = first; tile <= last; tile += 128u) {
        let pos = tile + lane;
        var score = -3.0e38;
        if (pos < end) {
            score = score_of(kv_head, cells, pos);
        } else if (pos == last) {
            score = 0.0;
            for (var i = 0u; i < cells; i++) {
                score += dot(query[i], unpack(own_key(i)));
            }
        }
        let above = max(highest, max_of_all(score, lane));
        var w = 0.0;
        if (pos <= last) {
            w = exp(score - above);
        }
        let shrink = exp(highest - above);
        highest = above;
        total = total * shrink + sum_of_all(w, lane);
        weight[lane] = w;
        workgroupBarrier();
        sum = sum * shrink;
        if (group < groups) {
            let n = min(128u, end - tile);
            for (var i = group; i < n; i += groups * AT_ONCE) {
                var some: array<Cell, AT_ONCE>;
                for (var j = 0u; j < AT_ONCE; j++) {
                    let at = min(i + j * groups, n - 1u);
                    some[j] = value_at(kv_head, cell, tile + at);
                }
                for (var j = 0u; j < AT_ONCE; j++) {
                    if (i + j * groups < n) {
                        sum = fma(vec4(weight[i + j * groups]), unpack(some[j]), sum);
                    }
                }
            }
            // The last of all comes last in its group as well.
            if (OWN == 1u && last - tile < 128u && (last - tile) % groups == group) {
                sum = fma(vec4(weight[last - tile]), unpack(own_value(cell)), sum);
            }
        }
        workgroupBarrier();
    }
    parts[lane] = sum;
    workgroupBarrier();
    if (lane < cells) {
        var value = vec4<f32>();
        for (var g = 0u; g < groups; g++) {
            value += parts[g * cells + lane];
        }
        value = value / total;
        for (var i = 0u; i < min(4u, p.head_dim - 4u * lane); i++) {
            out[at + 4u * lane + i] = value[i];
        }
    }
}
