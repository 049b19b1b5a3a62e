// One unit of nested weights times inputs, both integers. Codes minus 128 are signed bytes at every level. The difference
// counts once per sum of inputs, like the zero point. A unit's sum is below 2²¹, so f32 represents it exactly.

#import one

fn dots_of(w: vec4<u32>, x: u32) -> vec4<i32> {
    return vec4(dot4I8Packed(w.x, x), dot4I8Packed(w.y, x), dot4I8Packed(w.z, x), dot4I8Packed(w.w, x));
}

fn add_loaded(m: Matrix, unit: Loaded, at: u32, sums: ptr<function, Sums>) {
    let bits = unit.bits;
    let codes = unit.codes;
    let scale = codes.scale * m.alpha;
    let zero = plus(vec4(128.0) - codes.zero, vec4(m.centre));
    var dots: array<vec4<i32>, TOKENS>;
    for (var half = 0u; half < 2u; half++) {
        let w0 = packed(m, bits, 4u * half) ^ vec4(0x80808080u);
        let w1 = packed(m, bits, 4u * half + 1u) ^ vec4(0x80808080u);
        let w2 = packed(m, bits, 4u * half + 2u) ^ vec4(0x80808080u);
        let w3 = packed(m, bits, 4u * half + 3u) ^ vec4(0x80808080u);
        for (var t = 0u; t < TOKENS; t++) {
            let x = words_of(t, at, half);
            dots[t] += dots_of(w0, x.x);
            dots[t] += dots_of(w1, x.y);
            dots[t] += dots_of(w2, x.z);
            dots[t] += dots_of(w3, x.w);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let product = fma(zero, vec4(f32(sum_of(t, at))), vec4<f32>(dots[t]));
        // Rounded separately: see unit_nested.wgsl.
        (*sums)[t] = plus((*sums)[t], fma(scale * scale_of(t, at), product, vec4(m.nothing)));
    }
}

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, quad: u32, sums: ptr<function, Sums>) {
    add_loaded(m, load_unit(m, tile, unit, quad), at, sums);
}
