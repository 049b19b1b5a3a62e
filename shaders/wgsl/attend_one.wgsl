// `place` and `attention` of one token in one launch. Each workgroup computes the token's own key and value
// again; the first of the query heads that share them writes them to the cache. One workgroup: one query head
// and, if there are several tiles of positions, one tile; `attend_merge` merges the tiles.

#import attend
#import placed

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,   // rotated pairs
    pos: u32,
    capacity: u32,
    base: u32,   // position at place 0 of the cache
    q_norm: u32, // length of the queries' norm: 0 for none, a head or the whole row
    k_norm: u32,
    v_norm: u32, // whether values are normed, head by head, without weights
    eps: f32,
    limit: f32,  // 0 for none
    window: u32, // 0 for none
    scale: f32,
    tiles: u32,
    sinks: u32, // whether there are sinks, after the norms
    latent: u32, // 0, or the rotated part of a key, whose rest is also the value
    late: u32,  // whether queries and keys are normed after rope
    v_dim: u32,
}

@group(0) @binding(5) var<storage, read_write> keys: array<Cell>;   // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(6) var<storage, read_write> values: array<Cell>; // [kv_heads, capacity, v_dim / 4]
@group(0) @binding(7) var<storage, read_write> out: array<f32>;     // [heads · v_dim]; or see attend_merge.wgsl
var<immediate> p: Params;

// The token's own key and value: other workgroups may not have written them to the cache yet.
const OWN = 1u;
var<workgroup> key: array<Cell, MAX_CELLS>;
var<workgroup> value: array<Cell, 128>;

fn own_key(i: u32) -> Cell {
    return key[i];
}

fn own_value(i: u32) -> Cell {
    return value[i];
}

fn key_place(kv_head: u32, i: u32, pos: u32) -> u32 {
    return (kv_head * ((p.head_dim + 3u) / 4u) + i) * p.capacity + place_of(pos);
}

fn value_place(kv_head: u32, i: u32, pos: u32) -> u32 {
    return (kv_head * p.capacity + place_of(pos)) * ((p.v_dim + 3u) / 4u) + i;
}

fn key_at(kv_head: u32, i: u32, pos: u32) -> Cell {
    return keys[key_place(kv_head, i, pos)];
}

fn value_at(kv_head: u32, i: u32, pos: u32) -> Cell {
    return values[value_place(kv_head, i, pos)];
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let cells = (p.head_dim + 3u) / 4u;
    let wide = (p.v_dim + 3u) / 4u;
    let group = p.heads / p.kv_heads;
    let kv_head = id.x / group;
    // This workgroup's tile includes the token itself.
    let last = id.y + 1u == p.tiles;
    let writes = id.x % group == 0u;
    take_head(QUERY, id.x, 0u, p.pos, lane);
    for (var i = lane; i < cells; i += 128u) {
        query[i] = cell_of(i) * p.scale;
    }
    workgroupBarrier();
    if (last) {
        take_head(KEY, kv_head, 0u, p.pos, lane);
        for (var i = lane; i < cells; i += 128u) {
            let cell = pack(cell_of(i));
            key[i] = cell;
            if (writes) {
                keys[key_place(kv_head, i, p.pos)] = cell;
            }
        }
        workgroupBarrier();
        take_head(VALUE, kv_head, 0u, p.pos, lane);
        if (lane < wide) {
            let cell = pack(cell_of(lane));
            value[lane] = cell;
            if (writes) {
                values[value_place(kv_head, lane, p.pos)] = cell;
            }
        }
        workgroupBarrier();
    }
    let tile = attend(kv_head, first_seen(p.pos) + 128u * id.y, p.pos, lane);
    if (p.tiles == 1u) {
        if (lane < wide) {
            var all = put_together(nothing(), tile);
            if (p.sinks == 1u) {
                all = put_together(all, sink_of(norms[p.q_norm + p.k_norm + id.x]));
            }
            write_cell(all, lane, id.x * p.v_dim);
        }
        return;
    }
    let at = 4u * (id.x * p.tiles + id.y) * (wide + 1u);
    if (lane < wide) {
        for (var i = 0u; i < 4u; i++) {
            out[at + 4u * lane + i] = tile.sum[i];
        }
    }
    if (lane == 0u) {
        out[at + 4u * wide] = tile.highest;
        out[at + 4u * wide + 1u] = tile.total;
    }
}
