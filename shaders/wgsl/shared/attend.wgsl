// Attention of one query head, in `query`, over a tile of 128 positions. A tile's result does not depend on other
// workgroups, and tiles are merged in order: one workgroup may loop over all tiles, or each may have its own.
//
// A file that imports this has parameters `head_dim` and `v_dim` (of a value, at most 512), and defines
// `fn key_at(kv_head: u32, i: u32, pos: u32) -> Cell` and `fn value_at`: cell `i` of a position's key and value.
// If OWN is 1, also `fn own_key(i: u32) -> Cell` and `fn own_value`, for the last position, which is not in the
// cache. A cache has `capacity` places; position `base` has the first.

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

// The place of a position in the cache. The visible positions wrap around its end at most once.
fn place_of(pos: u32) -> u32 {
    let at = pos - p.base;
    return select(at, at - p.capacity, at >= p.capacity);
}

// The dot product of the query and the key of a position.
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
    // For the values, a group of invocations has one invocation per cell of a value; each group takes every
    // `groups`-th position.
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
        // The last position of all is also the last in its group.
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

// The first position that `last` attends to.
fn first_seen(last: u32) -> u32 {
    if (p.window > 0u && last + 1u > p.window) {
        return last + 1u - p.window;
    }
    return 0u;
}
