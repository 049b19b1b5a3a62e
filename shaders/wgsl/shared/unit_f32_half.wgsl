// One unit of unquantized weights times inputs in half precision. Weights stay in single precision, because
// unquantized weights must keep their precision.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, quad: u32, sums: ptr<function, Sums>) {
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = square(m, tile, unit, j, quad);
        for (var t = 0u; t < TOKENS; t++) {
            let x = vec4<f32>(vector_of(t, at, j));
            var d = fma(w[0], vec4(x.x), dots[t]);
            d = fma(w[1], vec4(x.y), d);
            d = fma(w[2], vec4(x.z), d);
            dots[t] = fma(w[3], vec4(x.w), d);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        (*sums)[t] += scale_of(t, at) * dots[t];
    }
}
