// One unit of nested weights times inputs, both whole numbers. Codes less 128 are signed bytes at every level; what that
// leaves out counts once per sum of inputs, as the zero point does. A unit's sum is below 2²¹, which f32 has.

#import one

fn add_loaded(m: Matrix, unit: Loaded, at: u32, sums: ptr<function, Sums>) {
    let bits = unit.bits;
    let codes = unit.codes;
    let zero = vec4(128) - vec4<i32>(codes.zero);
    var dots: array<vec4<i32>, TOKENS>;
    for (var j = 0u; j < 8u; j++) {
        let w = packed(bits, j) ^ vec4(0x80808080u);
        for (var t = 0u; t < TOKENS; t++) {
            let x = word_of(t, at, j);
            dots[t] += vec4(
                dot4I8Packed(w.x, x), dot4I8Packed(w.y, x), dot4I8Packed(w.z, x), dot4I8Packed(w.w, x)
            );
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let sum = sum_of(t, at);
        let whole = vec4<f32>(dots[t] + zero * sum);
        let product = m.alpha * fma(vec4(m.centre), vec4(f32(sum)), whole);
        // Rounded by itself: see unit_nested.wgsl.
        (*sums)[t] = plus((*sums)[t], fma(codes.scale * scale_of(t, at), product, vec4(m.nothing)));
    }
}

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, quad: u32, sums: ptr<function, Sums>) {
    add_loaded(m, load_unit(m, tile, unit, quad), at, sums);
}
