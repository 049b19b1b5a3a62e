// The state of a softmax, and how two are merged.

struct Tile {
    highest: f32,   // score
    total: f32,     // of weights, which are relative to it
    sum: vec4<f32>, // of values by their weights
}

fn nothing() -> Tile {
    return Tile(-3.0e38, 0.0, vec4<f32>());
}

// Merges the next tile into `all`.
fn put_together(all: Tile, tile: Tile) -> Tile {
    let highest = max(all.highest, tile.highest);
    let a = exp(all.highest - highest);
    let b = exp(tile.highest - highest);
    return Tile(highest, fma(all.total, a, tile.total * b), fma(all.sum, vec4(a), tile.sum * b));
}

// The tile of a sink: a score that takes part in the softmax but has no value.
fn sink_of(score: f32) -> Tile {
    return Tile(score, 1.0, vec4<f32>());
}

// Writes a cell of a head's result to `out`, up to the length of a value.
fn write_cell(all: Tile, cell: u32, at: u32) {
    let value = all.sum / all.total;
    for (var i = 0u; i < min(4u, p.v_dim - 4u * cell); i++) {
        out[at + 4u * cell + i] = value[i];
    }
}
