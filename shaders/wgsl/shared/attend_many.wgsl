// Attention of up to 16 queries of one key-value head, which are in `query`, over tiles of 128 positions: bit-identical to
// attend.wgsl for each query.
//
// A file that imports this has parameters `queries` and `capacity`, `keys` and `values`, their head in `kv_head`, the
// number of cells of a key, `cells`, and of a value, `wide`, and defines `fn last_of(i: u32) -> u32`, the last position
// that a query attends to. A value that is not finite also makes results of other queries in the same workgroup not finite.

#import kv
#import one
#import softmax

const MOST = 16u; // queries
const TILE = 128u; // positions

// Items per invocation: cells of queries, at most 512 in all.
const ITEMS = 4u;

var<workgroup> query: array<vec4<f32>, 512>; // [queries, cells]
// Used in turn for: scores and then weights, [128 positions, 16 queries]; values passed from one phase to the
// next; partial sums over values of four queries, [4, 128].
var<workgroup> between: array<vec4<f32>, 512>;

alias Items = array<Tile, ITEMS>;

// A cell of the weighted sums of values, for four queries each.
alias Sums = array<mat4x4<f32>, MOST / 4u>;

// The highest score and the total of every item's query.
alias Ends = array<vec2<f32>, ITEMS>;

fn word(i: u32) -> f32 {
    return between[i / 4u][i % 4u];
}

// Scores of a tile: 32 invocations for every four queries, each with four positions.
fn score_tile(tile: u32, last: u32, lane: u32) {
    let four = lane / 32u;
    if (4u * four < p.queries) {
        var scores: array<vec4<f32>, 4>; // [positions, queries]
        for (var i = 0u; i < cells; i += 4u) {
            var some: array<Cell, 16>;
            for (var j = 0u; j < 16u; j++) {
                let pos = min(tile + lane % 32u + 32u * (j % 4u), last);
                some[j] = keys[(kv_head * cells + min(i + j / 4u, cells - 1u)) * p.capacity + pos];
            }
            for (var j = 0u; j < 4u; j++) {
                if (i + j < cells) {
                    var key: array<vec4<f32>, 4>;
                    for (var k = 0u; k < 4u; k++) {
                        key[k] = unpack(some[4u * j + k]);
                    }
                    for (var t = 0u; t < 4u; t++) {
                        let x = query[(4u * four + t) * cells + i + j];
                        for (var k = 0u; k < 4u; k++) {
                            scores[k][t] = plus_single(scores[k][t], fixed_dot(x, key[k]));
                        }
                    }
                }
            }
        }
        for (var k = 0u; k < 4u; k++) {
            between[4u * (lane % 32u + 32u * k) + four] = scores[k];
        }
    }
    workgroupBarrier();
}

// Turns scores into weights: one invocation for every 16 positions of a query. Sums add neighbours, then
// pairs, and so on, in the order of the reductions over a workgroup.
fn weigh_tile(tile: u32, lane: u32) -> vec2<f32> {
    let i = lane % MOST;
    let chunk = lane / MOST;
    let last = last_of(i);
    var w: array<f32, 16>;
    var highest = -3.0e38;
    for (var j = 0u; j < 16u; j++) {
        let pos = 16u * chunk + j;
        w[j] = select(-3.0e38, between[4u * pos + i / 4u][i % 4u], tile + pos <= last);
        highest = max(highest, w[j]);
    }
    workgroupBarrier();
    between[lane / 4u][lane % 4u] = highest;
    workgroupBarrier();
    for (var c = 0u; c < 8u; c++) {
        highest = max(highest, word(MOST * c + i));
    }
    workgroupBarrier();
    var sums: array<f32, 16>;
    for (var j = 0u; j < 16u; j++) {
        w[j] = select(0.0, exp(w[j] - highest), tile + 16u * chunk + j <= last);
        sums[j] = w[j];
    }
    for (var half = 8u; half > 0u; half = half / 2u) {
        for (var j = 0u; j < half; j++) {
            sums[j] = plus_single(sums[2u * j], sums[2u * j + 1u]);
        }
    }
    between[lane / 4u][lane % 4u] = sums[0];
    workgroupBarrier();
    for (var c = 0u; c < 8u; c++) {
        sums[c] = word(MOST * c + i);
    }
    for (var half = 4u; half > 0u; half = half / 2u) {
        for (var j = 0u; j < half; j++) {
            sums[j] = plus_single(sums[2u * j], sums[2u * j + 1u]);
        }
    }
    workgroupBarrier();
    for (var j = 0u; j < 16u; j++) {
        between[4u * (16u * chunk + j) + i / 4u][i % 4u] = w[j];
    }
    workgroupBarrier();
    return vec2(highest, sums[0]);
}

// Values that are loaded before the first of them is used.
const AT_ONCE = 4u;

// Adds a value to a cell's sums for four queries.
fn add_value(w: vec4<f32>, value: vec4<f32>, sums: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(w.x), value, sums[0]),
        fma(vec4(w.y), value, sums[1]),
        fma(vec4(w.z), value, sums[2]),
        fma(vec4(w.w), value, sums[3])
    );
}

// Weighted sums of a tile's values. A group of invocations has one invocation per cell of a value; each group
// takes every `groups`-th position.
fn sum_values(tile: u32, last: u32, lane: u32) -> Sums {
    let groups = 128u / wide;
    let cell = lane % wide;
    let group = lane / wide;
    var sums: Sums;
    if (group < groups) {
        let n = min(TILE, last + 1u - tile);
        for (var i = group; i < n; i += groups * AT_ONCE) {
            var some: array<Cell, AT_ONCE>;
            for (var j = 0u; j < AT_ONCE; j++) {
                let at = min(i + j * groups, n - 1u);
                some[j] = values[(kv_head * p.capacity + tile + at) * wide + cell];
            }
            for (var j = 0u; j < AT_ONCE; j++) {
                if (i + j * groups < n) {
                    let at = i + j * groups;
                    let value = unpack(some[j]);
                    sums[0] = add_value(between[4u * at], value, sums[0]);
                    sums[1] = add_value(between[4u * at + 1u], value, sums[1]);
                    sums[2] = add_value(between[4u * at + 2u], value, sums[2]);
                    sums[3] = add_value(between[4u * at + 3u], value, sums[3]);
                }
            }
        }
    }
    workgroupBarrier();
    return sums;
}

// Merges a tile of four queries into `all`.
fn put_four(four: u32, tile: u32, sums: mat4x4<f32>, ends: Ends, lane: u32, all: ptr<function, Items>) {
    between[lane] = sums[0];
    between[128u + lane] = sums[1];
    between[256u + lane] = sums[2];
    between[384u + lane] = sums[3];
    workgroupBarrier();
    var ends_of = ends;
    for (var m = 0u; m < ITEMS; m++) {
        let i = (lane + 128u * m) / wide;
        let cell = (lane + 128u * m) % wide;
        if (i / 4u == four && i < p.queries && tile <= last_of(i)) {
            var sum = vec4<f32>();
            for (var g = 0u; g < 128u / wide; g++) {
                sum = plus(sum, between[128u * (i % 4u) + g * wide + cell]);
            }
            (*all)[m] = put_together((*all)[m], Tile(ends_of[m].x, ends_of[m].y, sum));
        }
    }
    workgroupBarrier();
}

// Merges a tile into `all`, four queries at a time. Unrolled by hand: compilers do not unroll a loop with
// barriers, and keep an array that it indexes in memory.
fn put_tile(tile: u32, ends: vec2<f32>, sums: Sums, lane: u32, all: ptr<function, Items>) {
    if (lane < MOST) {
        between[lane] = vec4(ends, 0.0, 0.0);
    }
    workgroupBarrier();
    var ends_of: Ends;
    for (var m = 0u; m < ITEMS; m++) {
        ends_of[m] = between[min((lane + 128u * m) / wide, MOST - 1u)].xy;
    }
    workgroupBarrier();
    put_four(0u, tile, sums[0], ends_of, lane, all);
    put_four(1u, tile, sums[1], ends_of, lane, all);
    put_four(2u, tile, sums[2], ends_of, lane, all);
    put_four(3u, tile, sums[3], ends_of, lane, all);
}
