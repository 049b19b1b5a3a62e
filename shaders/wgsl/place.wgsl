// The steps between the projections and attention: norms of queries and keys, clamping, rope. Queries go to
// `rotated`, keys and values to the cache. One workgroup: one head of one token.

#import kv
#import placed

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,   // rotated pairs
    pos: u32,
    capacity: u32,
    q_norm: u32, // length of the queries' norm: 0 for none, a head or the whole row
    k_norm: u32,
    v_norm: u32, // whether values are normed, head by head, without weights
    eps: f32,
    limit: f32,  // 0 for none
    latent: u32, // 0, or the rotated part of a key, whose rest is also the value
    late: u32,   // whether queries and keys are normed after rope
}

@group(0) @binding(5) var<storage, read_write> keys: array<Cell>;   // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(6) var<storage, read_write> values: array<Cell>; // [kv_heads, capacity, v_dim / 4]
@group(0) @binding(7) var<storage, read_write> rotated: array<f32>; // [tokens, heads · head_dim]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    var role = QUERY;
    var h = id.x;
    if (h >= p.heads) {
        h -= p.heads;
        role = KEY;
        if (h >= p.kv_heads) {
            h -= p.kv_heads;
            role = VALUE;
        }
    }
    let pos = p.pos + id.y;
    take_head(role, h, id.y, pos, lane);
    let cells = (p.head_dim + 3u) / 4u;
    let place = pos % p.capacity;
    if (role == QUERY) {
        for (var i = lane; i < p.head_dim; i += 128u) {
            rotated[(id.y * p.heads + h) * p.head_dim + i] = head[i];
        }
    } else {
        let wide = (p.head_dim - p.latent + 3u) / 4u;
        for (var i = lane; i < select(wide, cells, role == KEY); i += 128u) {
            let cell = pack(cell_of(i));
            if (role == KEY) {
                keys[(h * cells + i) * p.capacity + place] = cell;
            } else {
                values[(h * p.capacity + place) * wide + i] = cell;
            }
        }
    }
}
