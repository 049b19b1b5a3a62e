// One token's inputs in workgroup memory. They are loaded while the weights for their products are in flight.
//
// A file that imports this defines `fn input(t: u32, col: u32) -> vec4<f32>`, four columns from `col` on,
// zero beyond the last. It is called once per vector, by successive lanes.

// Units in memory at a time.
const UNITS = 64u;
var<workgroup> x_tile: array<vec4<f32>, 8u * UNITS>;

// The index of vector `j` of a unit. Neighbouring units that are read together lie in different banks.
fn x_place(unit: u32, j: u32) -> u32 {
    return 8u * unit + (j ^ (unit & 7u));
}

// Loads the units from `first` on into memory.
fn stage(first: u32, lane: u32) {
    for (var i = lane; i < 8u * UNITS; i += 128u) {
        x_tile[x_place(i / 8u, i % 8u)] = input(0u, 32u * first + 4u * i);
    }
    workgroupBarrier();
}

fn staged(unit: u32) -> array<vec4<f32>, 8> {
    var x: array<vec4<f32>, 8>;
    for (var j = 0u; j < 8u; j++) {
        x[j] = x_tile[x_place(unit, j)];
    }
    return x;
}
