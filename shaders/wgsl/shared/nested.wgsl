// The location of a bit-nested matrix, and the storage format of its groups' parameters.

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>; // planes of one or more matrices

// The offsets of a matrix, in vectors of four words.
struct Matrix {
    base: u32,   // plane 0
    scales: u32, // [tiles, groups, 16]: f16, or narrow ones of 8 bits
    zeros: u32,  // [tiles, groups, 16]: u8, or narrow ones of 4 bits; or [tiles, groups / 8, 16]: shared scales
    rest: u32,   // plane 1
    top: u32,    // if the last plane is in another buffer: its offset there, or NOWHERE
    tiles: u32,
    cells: u32,  // tiles · units
    units: u32,
    groups: u32,
    kind: u32,   // storage format of groups' parameters, as in GroupParams
    halves: u32, // logarithm of the units per group
    alpha: f32,
    centre: f32,  // added to codes, besides their zero point
    nothing: f32, // zero, but compilers cannot know
}

// The codes of a quad of a unit, as nibbles of bytes. For vector `j` the upper nibble of an 8-bit code is in
// `upper[j % 4]`, in the byte's lower half for the first four vectors, otherwise in its upper half; same for `lower`.
struct Bits {
    upper: array<vec4<u32>, 4>,
    lower: array<vec4<u32>, 4>,
}

// Converts a quad's codes to weights: code minus zero, times the scale.
struct Codes {
    scale: vec4<f32>,
    zero: vec4<f32>,
}

// The formats of groups' parameters (quant/params.rs), stored above a group's size in one word, from this bit on.
const KIND_BIT = 8u;
const NARROW = 1u;
const MXFP4 = 2u;
const IQ4_NL = 3u;
const IQ4_XS = 4u;

// The zero points of tables (quant/table.rs).
const MXFP4_ZERO = 32.0;
const IQ4_NL_ZERO = 128.0;

// The bits of the float that is MXFP4's smallest scale: 2⁻¹²⁷.
const MXFP4_LEAST = 0x00400000u;

// The float of a narrow scale of 0: 2⁻¹⁵.
const NARROW_BASE = 0x38000000u;

// `base` is in words.
fn matrix(base: u32, rows: u32, cols: u32, group: u32, alpha: f32, centre: f32) -> Matrix {
    var m: Matrix;
    m.tiles = (rows + 15u) / 16u;
    // Groups have 32 or 64 columns, so shifts suffice: divisions would take longer than a unit's product.
    m.halves = (group >> 6u) & 1u;
    m.groups = (cols + (32u << m.halves) - 1u) >> (5u + m.halves);
    m.kind = group >> KIND_BIT;
    m.units = m.groups << m.halves;
    m.cells = m.tiles * m.units;
    m.base = base / 4u;
    m.scales = m.base + 8u * m.cells;
    let all = m.tiles * m.groups;
    // A table has its own zero point.
    m.zeros = m.scales + aligned(select(2u * all, all, m.kind == NARROW || m.kind == MXFP4 || m.kind == IQ4_XS));
    var zeros = select(all, (all + 1u) / 2u, m.kind == NARROW);
    if (m.kind >= MXFP4) {
        zeros = select(0u, all / 4u, m.kind == IQ4_XS);
    }
    m.rest = m.zeros + aligned(zeros);
    m.top = NOWHERE;
    m.alpha = alpha;
    m.centre = centre;
    // Groups are multiples of 32.
    m.nothing = bitcast<f32>(group & 31u);
    return m;
}

// Rounds up to whole lines of 64 bytes.
fn aligned(vectors: u32) -> u32 {
    return (vectors + 3u) / 4u * 4u;
}
