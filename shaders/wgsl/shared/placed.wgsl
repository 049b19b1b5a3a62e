// A head of queries, keys or values, prepared for attention: normed, clamped, rotated.
//
// A file that imports this has parameters `heads`, `kv_heads`, `head_dim`, `half` (rotated pairs), `q_norm` and `k_norm`
// (length of a norm: 0 for none, a head or the whole row), `v_norm` (whether values are normed per head, without weights),
// `eps`, `limit` (0 for none), `latent` (0, or the rotated part of a key, whose rest is normed and also the value) and
// `late` (whether queries and keys are normed after the rotation, each over a head).

#import reduce

@group(0) @binding(0) var<storage, read> q: array<f32>;             // [tokens, heads · head_dim]
@group(0) @binding(1) var<storage, read> k: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(2) var<storage, read> v: array<f32>;             // [tokens, kv_heads · head_dim]
@group(0) @binding(3) var<storage, read> norms: array<f32>;         // [q_norm + k_norm]; attend_one: and sinks
@group(0) @binding(4) var<storage, read> rope: array<f32>;          // [positions, 2, half]: cosines, sines

const MAX_HEAD = 640u;
var<workgroup> head: array<f32, MAX_HEAD>;

const QUERY = 0u;
const KEY = 1u;
const VALUE = 2u;

fn source(role: u32, i: u32) -> f32 {
    if (role == QUERY) {
        return q[i];
    }
    if (role == KEY || p.latent > 0u) {
        return k[i];
    }
    return v[i];
}

// Loads head `h` of a token at a position into `head`, padded with zeros to whole cells.
fn take_head(role: u32, h: u32, token: u32, pos: u32, lane: u32) {
    let row = token * select(p.kv_heads, p.heads, role == QUERY) * p.head_dim;
    var at = row + h * p.head_dim;
    // The norm of a latent key excludes the rotated part; the value is the rest.
    var before = 0u;
    var dim = p.head_dim;
    if (role == KEY) {
        before = p.latent;
    } else if (role == VALUE) {
        at += p.latent;
        dim -= p.latent;
    }
    let weighted = role != VALUE || p.latent > 0u;
    var span = 0u;
    var weights = 0u;
    if (role == QUERY) {
        span = p.q_norm;
    } else if (role == KEY || p.latent > 0u) {
        span = p.k_norm;
        weights = p.q_norm;
    } else if (p.v_norm == 1u) {
        span = p.head_dim;
    }
    let late = p.late == 1u && role != VALUE;
    if (late) {
        span = 0u;
    }
    // A norm as long as a head applies to each head, a longer one to the whole row.
    let whole = span > p.head_dim;
    var scale = 1.0;
    if (span > 0u) {
        let begin = select(at + before, row, whole);
        var squares = 0.0;
        for (var i = lane; i < span; i += 128u) {
            let value = source(role, begin + i);
            squares = fma(value, value, squares);
        }
        scale = 1.0 / sqrt(fma(sum_of_all(squares, lane), 1.0 / f32(span), p.eps));
    }
    for (var i = lane; i < (dim + 3u) / 4u * 4u; i += 128u) {
        var value = 0.0;
        if (i < dim) {
            value = source(role, at + i);
            if (span > 0u && i >= before) {
                value = value * scale;
                if (weighted) {
                    value = value * norms[weights + select(0u, h * p.head_dim, whole) + i - before];
                }
            }
            if (p.limit > 0.0) {
                value = clamp(value, -p.limit, p.limit);
            }
        }
        head[i] = value;
    }
    workgroupBarrier();
    if (role != VALUE) {
        for (var i = lane; i < p.half; i += 128u) {
            let c = rope[pos * 2u * p.half + i];
            let s = rope[pos * 2u * p.half + p.half + i];
            let a = head[i];
            let b = head[i + p.half];
            head[i] = fma(a, c, -(b * s));
            head[i + p.half] = fma(b, c, a * s);
        }
        workgroupBarrier();
    }
    if (late) {
        norm_head(select(p.k_norm, p.q_norm, role == QUERY) > 0u, weights, lane);
    }
}

// Norms `head` with the weights from `first` on, if it has a norm.
fn norm_head(is: bool, first: u32, lane: u32) {
    var squares = 0.0;
    for (var i = lane; i < p.head_dim; i += 128u) {
        squares = fma(head[i], head[i], squares);
    }
    let scale = 1.0 / sqrt(fma(sum_of_all(squares, lane), 1.0 / f32(p.head_dim), p.eps));
    for (var i = lane; i < p.head_dim; i += 128u) {
        head[i] *= select(1.0, scale * norms[first + i], is);
    }
    workgroupBarrier();
}

// A cell of `head`.
fn cell_of(i: u32) -> vec4<f32> {
    return vec4(head[4u * i], head[4u * i + 1u], head[4u * i + 2u], head[4u * i + 3u]);
}
