// What stands between the projections and attention: norms of queries and keys, limits, rope; queries go to `rotated`,
// keys and values to the cache. One workgroup: one head of one token.

#import kv
#import reduce

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    half: u32,   // rotated pairs
    pos: u32,
    capacity: u32,
    q_norm: u32, // length of the norm of queries: 0 for none, a head or the whole row
    k_norm: u32,
    eps: f32,
    limit: f32,  // 0 for none
}

@group(0) @binding(0) var<storage, read> q: array<f32>;             // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> k: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(2) var<storage, read> v: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(3) var<storage, read> norms: array<f32>;         // [q_norm + k_norm]
@group(0) @binding(4) var<storage, read> rope: array<f32>;          // [positions, 2, half]: cosines, sines
@group(0) @binding(5) var<storage, read_write> keys: array<Cell>;   // [kv_heads, head_dim / 4, capacity]
@group(0) @binding(6) var<storage, read_write> values: array<Cell>; // [kv_heads, capacity, head_dim / 4]
@group(0) @binding(7) var<storage, read_write> rotated: array<f32>; // [tokens, heads · head_dim]
var<immediate> p: Params;

const MAX_HEAD = 512u;
var<workgroup> head: array<f32, MAX_HEAD>;

const QUERY = 0u;
const KEY = 1u;
const VALUE = 2u;

fn source(role: u32, i: u32) -> f32 {
    if (role == QUERY) {
        return q[i];
    }
    if (role == KEY) {
        return k[i];
    }
    return v[i];
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    var role = QUERY;
    var h = id.x;
    var heads = p.heads;
    if (h >= p.heads) {
        heads = p.kv_heads;
        h -= p.heads;
        role = KEY;
        if (h >= p.kv_heads) {
            h -= p.kv_heads;
            role = VALUE;
        }
    }
    let row = id.y * heads * p.head_dim;
    let at = row + h * p.head_dim;
    var span = 0u;
    var weights = 0u;
    if (role == QUERY) {
        span = p.q_norm;
    } else if (role == KEY) {
        span = p.k_norm;
        weights = p.q_norm;
    }
    // A norm as long as a head runs over the head, a longer one over the row.
    let whole = span > p.head_dim;
    var scale = 1.0;
    if (span > 0u) {
        let begin = select(at, row, whole);
        var squares = 0.0;
        for (var i = lane; i < span; i += 128u) {
            let value = source(role, begin + i);
            squares = fma(value, value, squares);
        }
        scale = 1.0 / sqrt(sum_of_all(squares, lane) / f32(span) + p.eps);
    }
    for (var i = lane; i < (p.head_dim + 3u) / 4u * 4u; i += 128u) {
        var value = 0.0;
        if (i < p.head_dim) {
            value = source(role, at + i);
            if (span > 0u) {
                value = value * scale * norms[weights + select(0u, h * p.head_dim, whole) + i];
            }
            if (p.limit > 0.0) {
                value = clamp(value, -p.limit, p.limit);
            }
        }
        head[i] = value;
    }
    workgroupBarrier();
    let pos = p.pos + id.y;
    if (role != VALUE) {
        for (var i = lane; i < p.half; i += 128u) {
            let c = rope[pos * 2u * p.half + i];
            let s = rope[pos * 2u * p.half + p.half + i];
            let a = head[i];
            let b = head[i + p.half];
            head[i] = a * c - b * s;
            head[i + p.half] = b * c + a * s;
        }
        workgroupBarrier();
    }
    let cells = (p.head_dim + 3u) / 4u;
    if (role == QUERY) {
        for (var i = lane; i < p.head_dim; i += 128u) {
            rotated[at + i] = head[i];
        }
    } else {
        for (var i = lane; i < cells; i += 128u) {
            let cell = pack(vec4(head[4u * i], head[4u * i + 1u], head[4u * i + 2u], head[4u * i + 3u]));
            if (role == KEY) {
                keys[(h * cells + i) * p.capacity + pos] = cell;
            } else {
                values[(h * p.capacity + pos) * cells + i] = cell;
            }
        }
    }
}
