// One unit of nested weights times the staged inputs, both whole numbers. Codes less 128 are signed bytes at every level;
// what that leaves out counts once per sum of inputs, as the zero point does. A unit's sum is below 2²¹, which f32 has.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, row: u32, sums: ptr<function, Sums>) {
    let bits = load_bits(m, tile, unit, row);
    let a = scale_and_zero(m, tile, unit, row);
    let centre = 128 - i32(a.y);
    var dots: array<i32, TOKENS>;
    for (var j = 0u; j < 8u; j++) {
        let w = packed(bits, j) ^ 0x80808080u;
        for (var t = 0u; t < TOKENS; t++) {
            dots[t] += dot4I8Packed(w, x_tile[t * (COLS / 4u) + 8u * at + j]);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let i = t * (COLS / 32u) + at;
        let whole = f32(dots[t] + centre * x_sums[i]);
        let product = fma(m.alpha, whole, m.beta * f32(x_sums[i]));
        (*sums)[t] = fma(a.x * x_scales[i], product, (*sums)[t]);
    }
}
