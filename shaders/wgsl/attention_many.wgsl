// Causal attention of many tokens: bit-identical to attention.wgsl, for calls in which no window hides a
// position. One workgroup: up to 16 queries of one key-value head, which are neighbours in the order of
// tokens and then of heads. Every key and value is read once for all of them.

#import attend_many

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    pos: u32,
    tokens: u32,
    queries: u32, // per workgroup: a multiple of 4, limited by workgroup memory
    scale: f32,
    sinks: u32,   // whether there are sinks
    v_dim: u32,   // values of a value
}

@group(0) @binding(0) var<storage, read> q: array<f32>;         // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> keys: array<Cell>;     // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(2) var<storage, read> values: array<Cell>;   // [kv_heads, capacity, v_dim / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [tokens, heads · v_dim]
@group(0) @binding(4) var<storage, read> sinks: array<f32>;     // [heads]
var<immediate> p: Params;

// The same for all invocations of a workgroup.
var<private> kv_head: u32;
var<private> cells: u32; // of a key
var<private> wide: u32;  // cells of a value
var<private> first: u32; // first query
var<private> count: u32; // queries of the head

// The last position that a query attends to.
fn last_of(i: u32) -> u32 {
    return p.pos + min(first + i, count - 1u) / (p.heads / p.kv_heads);
}

// The index of a query among all heads of all tokens.
fn place_of(i: u32) -> u32 {
    let group = p.heads / p.kv_heads;
    return (first + i) / group * p.heads + kv_head * group + (first + i) % group;
}

fn bring_queries(lane: u32) {
    for (var i = lane; i < p.queries * cells; i += 128u) {
        var cell = vec4<f32>();
        if (first + i / cells < count) {
            let at = place_of(i / cells) * p.head_dim + 4u * (i % cells);
            for (var c = 0u; c < min(4u, p.head_dim - 4u * (i % cells)); c++) {
                cell[c] = q[at + c] * p.scale;
            }
        }
        query[i] = cell;
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    know_one(p.head_dim);
    kv_head = id.x;
    cells = (p.head_dim + 3u) / 4u;
    wide = (p.v_dim + 3u) / 4u;
    first = id.y * p.queries;
    count = p.tokens * (p.heads / p.kv_heads);
    bring_queries(lane);
    let last = last_of(p.queries - 1u);
    var all: Items;
    for (var m = 0u; m < ITEMS; m++) {
        all[m] = nothing();
    }
    for (var tile = 0u; tile <= last; tile += TILE) {
        score_tile(tile, last, lane);
        let ends = weigh_tile(tile, lane);
        let sums = sum_values(tile, last, lane);
        put_tile(tile, ends, sums, lane, &all);
    }
    for (var m = 0u; m < ITEMS; m++) {
        let i = (lane + 128u * m) / wide;
        if (i < p.queries && first + i < count) {
            if (p.sinks == 1u) {
                let group = p.heads / p.kv_heads;
                all[m] = put_together(all[m], sink_of(sinks[kv_head * group + (first + i) % group]));
            }
            write_cell(all[m], (lane + 128u * m) % wide, place_of(i) * p.v_dim);
        }
    }
}
