// Attention of one query head, which is in `query`, over a tile of 128 positions. A tile's result does not depend on other
// workgroups, and tiles are merged in order, so the result is the same whether one workgroup loops over all tiles or each has its
// own.
//
// Whoever imports this has parameters `head_dim` and `v_dim` (of a value, 512 at most), `fn key_at(kv_head: u32, i: u32, pos: u32) -> Cell` and `fn value_at`, cell `i`
// of a position's key and value, and where OWN is 1 those of the last position, which are not in the cache:
// `fn own_key(i: u32) -> Cell` and `fn own_value`. A cache has `capacity` places, of which position `base` has the first.

#import kv
#import one
#import reduce
#import softmax

const MAX_CELLS = 160u;
var<workgroup> query: array<vec4<f32>, MAX_CELLS>;
var<workgroup> weight: array<f32, 128>;
var<workgroup> parts: array<vec4<f32>, 128>;

// Cells that are loaded before the first of them is used.
const AT_ONCE = 16u;

// Where a position lies in the cache: what is seen of it goes around its end once at most.
fn place_of(pos: u32) -> u32 {
    let at = pos - p.base;
    return select(at, at - p.capacity, at >= p.capacity);
}

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
                dots = plus_single(dots, fixed_dot(query[i + j], unpack(some[j])));
            }
        }
    }
    return dots;
}

// The tile from position `tile` up to `last`. Lane `cell` gets that cell of the weighted sum of values.
fn attend(kv_head: u32, tile: u32, last: u32, lane: u32) -> Tile {
    know_one(p.head_dim);
    let cells = (p.head_dim + 3u) / 4u;
    // Positions in the cache.
    let end = last + 1u - OWN;
    let pos = tile + lane;
    var score = -3.0e38;
    if (pos < end) {
        score = score_of(kv_head, cells, pos);
    } else if (pos == last) {
        score = 0.0;
        for (var i = 0u; i < cells; i++) {
            score = plus_single(score, fixed_dot(query[i], unpack(own_key(i))));
        }
    }
    var result: Tile;
    result.highest = max_of_all(score, lane);
    var w = 0.0;
    if (pos <= last) {
        w = exp(score - result.highest);
    }
    result.total = sum_of_all(w, lane);
    weight[lane] = w;
    workgroupBarrier();
    // For the values, a group of invocations has one invocation for each cell of a value; each group takes every `groups`-th
    // position.
    let wide = (p.v_dim + 3u) / 4u;
    let groups = 128u / wide;
    let cell = lane % wide;
    let group = lane / wide;
    var sum = vec4<f32>();
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
        // The last position of all is the last in its group as well.
        if (OWN == 1u && last - tile < 128u && (last - tile) % groups == group) {
            sum = fma(vec4(weight[last - tile]), unpack(own_value(cell)), sum);
        }
    }
    parts[lane] = sum;
    workgroupBarrier();
    if (lane < wide) {
        for (var g = 0u; g < groups; g++) {
            result.sum = plus(result.sum, parts[g * wide + lane]);
        }
    }
    workgroupBarrier();
    return result;
}

// The first position that `last` sees.
fn first_seen(last: u32) -> u32 {
    if (p.window > 0u && last + 1u > p.window) {
        return last + 1u - p.window;
    }
    return 0u;
}
