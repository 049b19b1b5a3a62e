// One unit of unquantized weights times the staged inputs in half precision. Weights stay as they are: what is not
// quantized is to be precise.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, row: u32, sums: ptr<function, Sums>) {
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = four(m, tile, unit, j, row);
        for (var t = 0u; t < TOKENS; t++) {
            dots[t] += dot(w, vec4<f32>(x_tile[t * (COLS / 4u) + 8u * at + j]));
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        (*sums)[t] = fma(x_scales[t * (COLS / 32u) + at], dots[t], (*sums)[t]);
    }
}
