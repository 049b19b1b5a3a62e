// One unit of nested weights times the staged inputs in half precision: products of four columns in half, their sums in
// single precision. Codes less their zero point are whole numbers below 256, which half precision has exactly; as inputs
// are at most 1, four products are below 1024.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, row: u32, sums: ptr<function, Sums>) {
    let bits = load_bits(m, tile, unit, row);
    let a = scale_and_zero(m, tile, unit, row);
    let zero = vec4<f16>(f16(a.y));
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = vec4<f16>(codes(bits, j)) - zero;
        for (var t = 0u; t < TOKENS; t++) {
            dots[t] += f32(dot(w, x_tile[t * (COLS / 4u) + 8u * at + j]));
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let i = t * (COLS / 32u) + at;
        let product = fma(m.alpha * x_scales[i], dots[t], m.beta * x_sums[i]);
        (*sums)[t] = fma(a.x, product, (*sums)[t]);
    }
}
