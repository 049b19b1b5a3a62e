// Bit-nested weights, PLANES of them present, as quant/layout.rs lays them out: plane after plane, tiles of 16 rows,
// units of 32 columns. A word holds bits of 4 neighbouring columns of one row in its 4 bytes; a 2-bit plane has a word
// for the even vectors of a unit and one for the odd ones, a 1-bit plane one word for all eight.

#import word

@group(0) @binding(0) var<storage, read> weights: array<u32>; // planes of one or more matrices

struct Matrix {
    base: u32,   // word of plane 0
    scales: u32, // f16, [tiles, groups, 16]
    zeros: u32,  // u8, [tiles, groups, 16]
    rest: u32,   // word of plane 1
    top: u32,    // where the last plane lies elsewhere: its word there, or NOWHERE
    cells: u32,  // tiles · units
    units: u32,
    groups: u32,
    per_group: u32, // units
    alpha: f32,
    beta: f32,
}

// One row of a unit.
struct Bits {
    p0: vec2<u32>,
    p1: u32,
    p2: u32,
    p3: vec2<u32>,
    p4: vec2<u32>,
}

fn matrix(base: u32, rows: u32, cols: u32, group: u32, alpha: f32, beta: f32) -> Matrix {
    var m: Matrix;
    let tiles = (rows + 15u) / 16u;
    m.groups = (cols + group - 1u) / group;
    m.per_group = group / 32u;
    m.units = m.groups * m.per_group;
    m.cells = tiles * m.units;
    m.base = base;
    m.scales = base + 32u * m.cells;
    m.zeros = m.scales + aligned(8u * tiles * m.groups);
    m.rest = m.zeros + aligned(4u * tiles * m.groups);
    m.alpha = alpha;
    m.beta = beta;
    return m;
}

fn aligned(words: u32) -> u32 {
    return (words + 15u) / 16u * 16u;
}

fn load_bits(m: Matrix, tile: u32, unit: u32, row: u32) -> Bits {
    let cell = tile * m.units + unit;
    let wide = 32u * cell + row;
    let narrow = 16u * cell + row;
    var b: Bits;
    b.p0 = vec2(weights[m.base + wide], weights[m.base + wide + 16u]);
    if (PLANES > 1u) {
        b.p1 = word(m, 1u, m.rest, narrow);
    }
    if (PLANES > 2u) {
        b.p2 = word(m, 2u, m.rest + 16u * m.cells, narrow);
    }
    if (PLANES > 3u) {
        let plane = m.rest + 32u * m.cells;
        b.p3 = vec2(word(m, 3u, plane, wide), word(m, 3u, plane, wide + 16u));
    }
    if (PLANES > 4u) {
        let plane = m.rest + 64u * m.cells;
        b.p4 = vec2(word(m, 4u, plane, wide), word(m, 4u, plane, wide + 16u));
    }
    return b;
}

// The codes of vector `j` in the bytes of a word, where they stand among 8-bit codes.
fn packed(b: Bits, j: u32) -> u32 {
    let shift = j & 6u;
    let odd = (j & 1u) == 1u;
    var c = select(b.p0.x, b.p0.y, odd) >> shift & 0x03030303u;
    if (PLANES > 1u) {
        c = c << 1u | (b.p1 >> j & 0x01010101u);
    }
    if (PLANES > 2u) {
        c = c << 1u | (b.p2 >> j & 0x01010101u);
    }
    if (PLANES > 3u) {
        c = c << 2u | (select(b.p3.x, b.p3.y, odd) >> shift & 0x03030303u);
    }
    if (PLANES > 4u) {
        c = c << 2u | (select(b.p4.x, b.p4.y, odd) >> shift & 0x03030303u);
    }
    return c << (8u - BITS);
}

fn codes(b: Bits, j: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(packed(b, j)));
}

// The scale of a row's unit, and the code that stands for nothing.
fn scale_and_zero(m: Matrix, tile: u32, unit: u32, row: u32) -> vec2<f32> {
    let at = (tile * m.groups + unit / m.per_group) * 16u + row;
    let pair = unpack2x16float(weights[m.scales + at / 2u]);
    let scale = select(pair.x, pair.y, (at & 1u) == 1u);
    let zero = weights[m.zeros + at / 4u] >> (8u * (at & 3u)) & 255u;
    return vec2(scale, f32(zero));
}

// What multiplies the codes of a row's unit, and what is added for every one.
fn affine(m: Matrix, tile: u32, unit: u32, row: u32) -> vec2<f32> {
    let a = scale_and_zero(m, tile, unit, row);
    return vec2(a.x * m.alpha, a.x * (m.beta - m.alpha * a.y));
}

// Four columns of a row.
fn four(m: Matrix, tile: u32, unit: u32, j: u32, row: u32) -> vec4<f32> {
    let a = affine(m, tile, unit, row);
    return a.x * codes(load_bits(m, tile, unit, row), j) + a.y;
}
