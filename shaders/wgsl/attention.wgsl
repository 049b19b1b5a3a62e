// Causal attention with an online softmax over tiles of 128 positions. One workgroup: one query head of one token. Tiles
// begin at the first position that the token sees, so its result does not depend on what else is in the call.

#import kv
#import reduce

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    pos: u32,
    window: u32, // 0 for none
    scale: f32,
}

@group(0) @binding(0) var<storage, read> q: array<f32>;         // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> keys: array<Cell>;     // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(2) var<storage, read> values: array<Cell>;   // [kv_heads, capacity, head_dim / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [tokens, heads · head_dim]
var<immediate> p: Params;

const MAX_CELLS = 128u;
var<workgroup> query: array<vec4<f32>, MAX_CELLS>;
var<workgroup> weight: array<f32, 128>;
var<workgroup> parts: array<vec4<f32>, 128>;

// Cells that are read before the first of them is used.
const AT_ONCE = 8u;

// The query times the key of a position, whose cells begin at `first`.
fn score_of(first: u32, cells: u32, pos: u32) -> f32 {
    var dots = 0.0;
    for (var i = 0u; i < cells; i += AT_ONCE) {
        var some: array<Cell, AT_ONCE>;
        for (var j = 0u; j < AT_ONCE; j++) {
            some[j] = keys[(first + min(i + j, cells - 1u)) * p.capacity + pos];
        }
        for (var j = 0u; j < AT_ONCE; j++) {
            if (i + j < cells) {
                dots += dot(query[i + j], unpack(some[j]));
            }
        }
    }
    return dots;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let cells = (p.head_dim + 3u) / 4u;
    let at = (id.y * p.heads + id.x) * p.head_dim;
    let kv_head = id.x / (p.heads / p.kv_heads);
    if (lane < cells) {
        var cell = vec4<f32>();
        for (var i = 0u; i < min(4u, p.head_dim - 4u * lane); i++) {
            cell[i] = q[at + 4u * lane + i] * p.scale;
        }
        query[lane] = cell;
    }
    workgroupBarrier();

    let last = p.pos + id.y;
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
        if (pos <= last) {
            score = score_of(kv_head * cells, cells, pos);
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
            let n = min(128u, last + 1u - tile);
            for (var i = group; i < n; i += groups * AT_ONCE) {
                var some: array<Cell, AT_ONCE>;
                for (var j = 0u; j < AT_ONCE; j++) {
                    let at = min(i + j * groups, n - 1u);
                    some[j] = values[(kv_head * p.capacity + tile + at) * cells + cell];
                }
                for (var j = 0u; j < AT_ONCE; j++) {
                    if (i + j * groups < n) {
                        sum = fma(vec4(weight[i + j * groups]), unpack(some[j]), sum);
                    }
                }
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
