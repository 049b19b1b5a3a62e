// A head of queries, keys or values as it goes to attention: normed, limited, rotated.
//
// Whoever imports this has parameters `heads`, `kv_heads`, `head_dim`, `half` (rotated pairs), `q_norm` and `k_norm` (length
// of a norm: 0 for none, a head or the whole row), `eps` and `limit` (0 for none).

#import reduce

@group(0) @binding(0) var<storage, read> q: array<f32>;             // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> k: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(2) var<storage, read> v: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(3) var<storage, read> norms: array<f32>;         // [q_norm + k_norm]
@group(0) @binding(4) var<storage, read> rope: array<f32>;          // [positions, 2, half]: cosines, sines

const MAX_HEAD = 512u;
var<workgroup> heads: array<array<f32, MAX_HEAD>, 3>; // of each role

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

// The length of the norm of a role's heads, 0 for none. One as long as a head runs over the head, a longer one over the row.
fn norm_of(role: u32) -> u32 {
    return select(select(0u, p.k_norm, role == KEY), p.q_norm, role == QUERY);
}

// Where a token's row of a role's heads begins.
fn row_of_heads(role: u32, token: u32) -> u32 {
    return token * select(p.kv_heads, p.heads, role == QUERY) * p.head_dim;
}

// An invocation's part of the squares that a head is normed by.
fn squares_of(role: u32, h: u32, token: u32, lane: u32) -> f32 {
    let span = norm_of(role);
    let begin = row_of_heads(role, token) + select(h * p.head_dim, 0u, span > p.head_dim);
    var squares = 0.0;
    for (var i = lane; i < span; i += 128u) {
        let value = source(role, begin + i);
        squares = fma(value, value, squares);
    }
    return squares;
}

// What a head is to be multiplied with, by the sum of squares.
fn scale_of_head(role: u32, squares: f32) -> f32 {
    let span = norm_of(role);
    return select(1.0, 1.0 / sqrt(squares / f32(span) + p.eps), span > 0u);
}

// Brings head `h` of a token into memory, but for its scale; padded with zeros to whole cells.
fn bring_head(role: u32, h: u32, token: u32, lane: u32) {
    let at = row_of_heads(role, token) + h * p.head_dim;
    let span = norm_of(role);
    let weights = select(0u, p.q_norm, role == KEY) + select(0u, h * p.head_dim, span > p.head_dim);
    for (var i = lane; i < (p.head_dim + 3u) / 4u * 4u; i += 128u) {
        var value = 0.0;
        if (i < p.head_dim) {
            value = source(role, at + i);
            if (span > 0u) {
                value = value * norms[weights + i];
            }
        }
        heads[role][i] = value;
    }
}

fn scaled(role: u32, i: u32, scale: f32) -> f32 {
    let value = heads[role][i] * scale;
    return select(value, clamp(value, -p.limit, p.limit), p.limit > 0.0);
}

// Scales a head in memory, and rotates what is to be rotated.
fn finish_head(role: u32, scale: f32, pos: u32, lane: u32) {
    let half = select(p.half, 0u, role == VALUE);
    for (var i = lane; i < half; i += 128u) {
        let c = rope[pos * 2u * half + i];
        let s = rope[pos * 2u * half + half + i];
        let a = scaled(role, i, scale);
        let b = scaled(role, i + half, scale);
        heads[role][i] = a * c - b * s;
        heads[role][i + half] = b * c + a * s;
    }
    for (var i = 2u * half + lane; i < p.head_dim; i += 128u) {
        heads[role][i] = scaled(role, i, scale);
    }
}

// A cell of a head in memory.
fn cell_of(role: u32, i: u32) -> vec4<f32> {
    return vec4(heads[role][4u * i], heads[role][4u * i + 1u], heads[role][4u * i + 2u], heads[role][4u * i + 3u]);
}
