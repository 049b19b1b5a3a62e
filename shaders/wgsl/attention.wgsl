// Causal attention. One workgroup: one query head of one token.

#import attend

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    base: u32,   // position at place 0 of the cache
    pos: u32,
    window: u32, // 0 for none
    scale: f32,
    sinks: u32, // whether there are sinks
    v_dim: u32, // values of a value; at most those of a query
}

@group(0) @binding(0) var<storage, read> q: array<f32>;         // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> keys: array<Cell>;     // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(2) var<storage, read> values: array<Cell>;   // [kv_heads, capacity, v_dim / 4]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [tokens, heads · v_dim]
@group(0) @binding(4) var<storage, read> sinks: array<f32>;     // [heads]
var<immediate> p: Params;

// Every token's key and value are in the cache.
const OWN = 0u;

fn own_key(i: u32) -> Cell {
    return Cell();
}

fn own_value(i: u32) -> Cell {
    return Cell();
}

fn key_at(kv_head: u32, i: u32, pos: u32) -> Cell {
    return keys[(kv_head * ((p.head_dim + 3u) / 4u) + i) * p.capacity + place_of(pos)];
}

fn value_at(kv_head: u32, i: u32, pos: u32) -> Cell {
    return values[(kv_head * p.capacity + place_of(pos)) * ((p.v_dim + 3u) / 4u) + i];
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let at = (id.y * p.heads + id.x) * p.head_dim;
    for (var c = lane; c < (p.head_dim + 3u) / 4u; c += 128u) {
        var cell = vec4<f32>();
        for (var i = 0u; i < min(4u, p.head_dim - 4u * c); i++) {
            cell[i] = q[at + 4u * c + i] * p.scale;
        }
        query[c] = cell;
    }
    workgroupBarrier();
    let last = p.pos + id.y;
    var all = nothing();
    for (var tile = first_seen(last); tile <= last; tile += 128u) {
        all = put_together(all, attend(id.x / (p.heads / p.kv_heads), tile, last, lane));
    }
    if (p.sinks == 1u) {
        all = put_together(all, sink_of(sinks[id.x]));
    }
    if (lane < (p.v_dim + 3u) / 4u) {
        write_cell(all, lane, (id.y * p.heads + id.x) * p.v_dim);
    }
}
