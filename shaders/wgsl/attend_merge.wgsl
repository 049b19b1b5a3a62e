// Merges the tiles of each head from `attend_one`. One workgroup: one query head.

#import softmax

struct Params {
    v_dim: u32,
    tiles: u32,
    sinks: u32, // whether there are sinks
}

@group(0) @binding(0) var<storage, read> partial: array<vec4<f32>>; // [heads, tiles, v_dim / 4 + 1]: cells; highest, total
@group(0) @binding(1) var<storage, read_write> out: array<f32>;     // [heads · v_dim]
@group(0) @binding(2) var<storage, read> sinks: array<f32>;         // [heads]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let cells = (p.v_dim + 3u) / 4u;
    if (lane >= cells) {
        return;
    }
    var all = nothing();
    for (var t = 0u; t < p.tiles; t++) {
        let at = (id.x * p.tiles + t) * (cells + 1u);
        let ends = partial[at + cells];
        all = put_together(all, Tile(ends.x, ends.y, partial[at + lane]));
    }
    if (p.sinks == 1u) {
        all = put_together(all, sink_of(sinks[id.x]));
    }
    write_cell(all, lane, id.x * p.v_dim);
}
