// Bit-nested weights with PLANES planes, in the layout of quant/layout.rs: plane after plane, tiles of 16
// rows, units of 32 columns. A word contains bits of 4 neighbouring columns of one row in its 4 bytes. A
// 2-bit plane has a word for the even vectors of a unit and one for the odd ones, a 1-bit plane one word for
// all eight. Words of four rows (a quad) lie side by side and are read together.

#import nested
#import word

// The bits of `a` where `mask` has ones, elsewhere those of `b`.
fn merged(a: vec4<u32>, b: vec4<u32>, mask: u32) -> vec4<u32> {
    return (a & vec4(mask)) | (b & vec4(~mask));
}

// Two bits of eight vectors each, `high` above `low`, as nibbles.
fn nibbles(high_even: vec4<u32>, high_odd: vec4<u32>, low_even: vec4<u32>, low_odd: vec4<u32>) -> array<vec4<u32>, 4> {
    return array(
        merged(high_even << vec4(2u), low_even, 0xccccccccu),
        merged(high_odd << vec4(2u), low_odd, 0xccccccccu),
        merged(high_even, low_even >> vec4(2u), 0xccccccccu),
        merged(high_odd, low_odd >> vec4(2u), 0xccccccccu)
    );
}

fn load_bits(m: Matrix, tile: u32, unit: u32, quad: u32) -> Bits {
    let cell = tile * m.units + unit;
    let wide = 8u * cell + quad;
    let narrow = 4u * cell + quad;
    let p0_even = weights[m.base + wide];
    let p0_odd = weights[m.base + wide + 4u];
    var p1: vec4<u32>;
    var p2: vec4<u32>;
    var b: Bits;
    if (PLANES > 1u) {
        p1 = word(m, 1u, m.rest, narrow);
    }
    if (PLANES > 2u) {
        p2 = word(m, 2u, m.rest + 4u * m.cells, narrow);
    }
    if (PLANES > 3u) {
        let plane = m.rest + 8u * m.cells;
        let p3_even = word(m, 3u, plane, wide);
        let p3_odd = word(m, 3u, plane, wide + 4u);
        var p4_even: vec4<u32>;
        var p4_odd: vec4<u32>;
        if (PLANES > 4u) {
            let plane = m.rest + 16u * m.cells;
            p4_even = word(m, 4u, plane, wide);
            p4_odd = word(m, 4u, plane, wide + 4u);
        }
        b.lower = nibbles(p3_even, p3_odd, p4_even, p4_odd);
    }
    // Single bits of neighbouring vectors, merged, have the layout of the first plane.
    let even = merged(p1 << vec4(1u), p2, 0xaaaaaaaau);
    let odd = merged(p1, p2 >> vec4(1u), 0xaaaaaaaau);
    b.upper = nibbles(p0_even, p0_odd, even, odd);
    return b;
}

// The entries of a table for `planes` planes, by 4-bit codes (quant/table.rs repeats those of shorter codes).
fn entries(kind: u32, planes: u32) -> vec4<u32> {
    if (kind == MXFP4) {
        if (planes == 3u) {
            return vec4(0x18141008u, 0x201e1c1au, 0x28262422u, 0x3838302cu);
        }
        if (planes == 2u) {
            return vec4(0x16160e0eu, 0x1f1f1b1bu, 0x27272323u, 0x38382e2eu);
        }
        return vec4(0x14141414u, 0x1d1d1d1du, 0x25252525u, 0x2f2f2f2fu);
    }
    if (planes == 3u) {
        return vec4(0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u);
    }
    if (planes == 2u) {
        return vec4(0x38380a0au, 0x70705757u, 0x9f9f8787u, 0xe1e1bcbcu);
    }
    return vec4(0x26262626u, 0x64646464u, 0x93939393u, 0xc8c8c8c8u);
}

// The values of the codes in the upper halves of bytes.
fn looked_up(table: vec4<u32>, codes: vec4<u32>) -> vec4<u32> {
    var found: vec4<u32>;
    for (var byte = 0u; byte < 4u; byte++) {
        let code = codes >> vec4(8u * byte + 4u);
        let odd = (code & vec4(4u)) != vec4<u32>();
        let low = select(vec4(table.x), vec4(table.y), odd);
        let high = select(vec4(table.z), vec4(table.w), odd);
        let four = select(low, high, (code & vec4(8u)) != vec4<u32>());
        found |= ((four >> ((code & vec4(3u)) << vec4(3u))) & vec4(255u)) << vec4(8u * byte);
    }
    return found;
}

// Vector `j`'s codes in a word per row, at their position in 8-bit codes, or looked up in the table.
fn packed(m: Matrix, b: Bits, j: u32) -> vec4<u32> {
    let half = j & 4u;
    let upper = b.upper[j & 3u] << vec4(4u - half);
    if (PLANES > 3u) {
        return merged(upper, b.lower[j & 3u] >> vec4(half), 0xf0f0f0f0u);
    }
    if (m.kind >= MXFP4) {
        return looked_up(entries(m.kind, present(m)), upper);
    }
    return upper & vec4(0xf0f0f0f0u);
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

// Word `i` of four, without indexing registers.
fn one_of(words: vec4<u32>, i: u32) -> u32 {
    return select(select(words.x, words.y, i == 1u), select(words.z, words.w, i == 3u), i > 1u);
}

// A quad's part of sixteen f16.
fn halves(first: u32, quad: u32) -> vec4<f32> {
    let sixteen = weights[first + quad / 2u];
    let pairs = select(sixteen.xy, sixteen.zw, (quad & 1u) == 1u);
    return vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}

fn load_codes(m: Matrix, tile: u32, unit: u32, quad: u32) -> Codes {
    let at = tile * m.groups + (unit >> m.halves);
    if (m.kind == MXFP4) {
        let scales = unpack4xU8(one_of(weights[m.scales + at], quad));
        let bits = max(scales << vec4(23u), vec4(MXFP4_LEAST));
        return Codes(bitcast<vec4<f32>>(bits), vec4(MXFP4_ZERO));
    }
    if (m.kind == IQ4_XS) {
        let own_scale = vec4<f32>(unpack4xI8(one_of(weights[m.scales + at], quad)));
        let of_eight = halves(m.zeros + 2u * (at / 8u), quad);
        return Codes(own_scale * of_eight, vec4(IQ4_NL_ZERO));
    }
    if (m.kind == NARROW) {
        // One byte per row; rows 8 apart share one for their zero points. A scale's bits go directly into a float.
        let scales = unpack4xU8(one_of(weights[m.scales + at], quad));
        let pairs = one_of(weights[m.zeros + at / 2u], 2u * (at & 1u) + (quad & 1u));
        let zeros = (unpack4xU8(pairs) >> vec4(4u * (quad / 2u))) & vec4(15u);
        return Codes(
            bitcast<vec4<f32>>((scales << vec4(19u)) + vec4(NARROW_BASE)),
            vec4<f32>(8u * zeros + vec4(64u))
        );
    }
    let scales = halves(m.scales + 2u * at, quad);
    if (m.kind == IQ4_NL) {
        return Codes(scales, vec4(IQ4_NL_ZERO));
    }
    let four = one_of(weights[m.zeros + at], quad);
    return Codes(scales, vec4<f32>(unpack4xU8(four)));
}

// A loaded quad of a unit.
struct Loaded {
    bits: Bits,
    codes: Codes,
}

fn load_unit(m: Matrix, tile: u32, unit: u32, quad: u32) -> Loaded {
    return Loaded(load_bits(m, tile, unit, quad), load_codes(m, tile, unit, quad));
}

// Four columns of a row.
fn four(m: Matrix, tile: u32, unit: u32, j: u32, row: u32) -> vec4<f32> {
    let c = load_codes(m, tile, unit, row / 4u);
    let scale = c.scale[row % 4u];
    let zero = c.zero[row % 4u];
    let codes = vec4<f32>(unpack4xU8(packed(m, load_bits(m, tile, unit, row / 4u), j)[row % 4u]));
    return scale * m.alpha * (codes + (m.centre - zero));
}
