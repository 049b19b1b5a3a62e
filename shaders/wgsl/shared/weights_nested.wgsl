// Bit-nested weights, PLANES of them present, as quant/layout.rs lays them out: plane after plane, tiles of 16 rows,
// units of 32 columns. A word holds bits of 4 neighbouring columns of one row in its 4 bytes; a 2-bit plane has a word
// for the even vectors of a unit and one for the odd ones, a 1-bit plane one word for all eight. Words of four rows (a
// quad) lie side by side and are read at once.

#import word

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>; // planes of one or more matrices

// Where a matrix lies, in vectors of four words.
struct Matrix {
    base: u32,   // plane 0
    scales: u32, // f16, [tiles, groups, 16]
    zeros: u32,  // u8, [tiles, groups, 16]
    rest: u32,   // plane 1
    top: u32,    // where the last plane lies elsewhere: its place there, or NOWHERE
    tiles: u32,
    cells: u32,  // tiles · units
    units: u32,
    groups: u32,
    halves: u32, // the logarithm of a group's units
    alpha: f32,
    beta: f32,
    centre: f32,  // beta / alpha
    nothing: f32, // zero, which compilers do not know
}

// A quad of a unit.
struct Bits {
    p0_even: vec4<u32>,
    p0_odd: vec4<u32>,
    p1: vec4<u32>,
    p2: vec4<u32>,
    p3_even: vec4<u32>,
    p3_odd: vec4<u32>,
    p4_even: vec4<u32>,
    p4_odd: vec4<u32>,
}

// What turns a quad's codes into weights: code less zero, times the scale.
struct Codes {
    scale: vec4<f32>,
    zero: vec4<f32>,
}

// `base` is a word.
fn matrix(base: u32, rows: u32, cols: u32, group: u32, alpha: f32, beta: f32) -> Matrix {
    var m: Matrix;
    m.tiles = (rows + 15u) / 16u;
    // Groups are of 32 or 64 columns: shifts, where divisions would take longer than a unit's product.
    m.halves = group / 64u;
    m.groups = (cols + group - 1u) >> (5u + m.halves);
    m.units = m.groups << m.halves;
    m.cells = m.tiles * m.units;
    m.base = base / 4u;
    m.scales = m.base + 8u * m.cells;
    m.zeros = m.scales + aligned(2u * m.tiles * m.groups);
    m.rest = m.zeros + aligned(m.tiles * m.groups);
    m.top = NOWHERE;
    // What is divided by.
    m.alpha = select(alpha, 1.0e-20, alpha == 0.0);
    m.beta = beta;
    m.centre = m.beta / m.alpha;
    // Groups are multiples of 32.
    m.nothing = bitcast<f32>(group & 31u);
    return m;
}

// Whole lines of 64 bytes.
fn aligned(vectors: u32) -> u32 {
    return (vectors + 3u) / 4u * 4u;
}

fn load_bits(m: Matrix, tile: u32, unit: u32, quad: u32) -> Bits {
    let cell = tile * m.units + unit;
    let wide = 8u * cell + quad;
    let narrow = 4u * cell + quad;
    var b: Bits;
    b.p0_even = weights[m.base + wide];
    b.p0_odd = weights[m.base + wide + 4u];
    if (PLANES > 1u) {
        b.p1 = word(m, 1u, m.rest, narrow);
    }
    if (PLANES > 2u) {
        b.p2 = word(m, 2u, m.rest + 4u * m.cells, narrow);
    }
    if (PLANES > 3u) {
        let plane = m.rest + 8u * m.cells;
        b.p3_even = word(m, 3u, plane, wide);
        b.p3_odd = word(m, 3u, plane, wide + 4u);
    }
    if (PLANES > 4u) {
        let plane = m.rest + 16u * m.cells;
        b.p4_even = word(m, 4u, plane, wide);
        b.p4_odd = word(m, 4u, plane, wide + 4u);
    }
    return b;
}

// The codes of vector `j` in the bytes of a word for each row, where they stand among 8-bit codes.
fn packed(b: Bits, j: u32) -> vec4<u32> {
    let pair = vec4(j & 6u);
    let bit = vec4(j);
    let odd = (j & 1u) == 1u;
    let twos = vec4(0x03030303u);
    let ones = vec4(0x01010101u);
    var c = (select(b.p0_even, b.p0_odd, odd) >> pair) & twos;
    if (PLANES > 1u) {
        c = (c << vec4(1u)) | ((b.p1 >> bit) & ones);
    }
    if (PLANES > 2u) {
        c = (c << vec4(1u)) | ((b.p2 >> bit) & ones);
    }
    if (PLANES > 3u) {
        c = (c << vec4(2u)) | ((select(b.p3_even, b.p3_odd, odd) >> pair) & twos);
    }
    if (PLANES > 4u) {
        c = (c << vec4(2u)) | ((select(b.p4_even, b.p4_odd, odd) >> pair) & twos);
    }
    return c << vec4(8u - BITS);
}

// The codes of a vector's four columns.
fn columns(packed: vec4<u32>) -> array<vec4<f32>, 4> {
    let byte = vec4(255u);
    return array(
        vec4<f32>(packed & byte),
        vec4<f32>((packed >> vec4(8u)) & byte),
        vec4<f32>((packed >> vec4(16u)) & byte),
        vec4<f32>(packed >> vec4(24u))
    );
}

fn load_codes(m: Matrix, tile: u32, unit: u32, quad: u32) -> Codes {
    let at = tile * m.groups + (unit >> m.halves);
    let scales = weights[m.scales + 2u * at + quad / 2u];
    let pairs = select(scales.xy, scales.zw, (quad & 1u) == 1u);
    let zeros = weights[m.zeros + at];
    let four = select(select(zeros.x, zeros.y, quad == 1u), select(zeros.z, zeros.w, quad == 3u), quad > 1u);
    return Codes(vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y)), vec4<f32>(unpack4xU8(four)));
}

// Four columns of a row.
fn four(m: Matrix, tile: u32, unit: u32, j: u32, row: u32) -> vec4<f32> {
    let c = load_codes(m, tile, unit, row / 4u);
    let scale = c.scale[row % 4u];
    let zero = c.zero[row % 4u];
    let codes = vec4<f32>(unpack4xU8(packed(load_bits(m, tile, unit, row / 4u), j)[row % 4u]));
    return scale * m.alpha * codes + scale * (m.beta - m.alpha * zero);
}
