// One unit of nested weights times inputs in half precision: products of four columns in half precision,
// their sums in single precision. Codes minus their zero point are integers below 256, exact in half
// precision; inputs are at most 1, so four products are below 1024.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, quad: u32, sums: ptr<function, Sums>) {
    let bits = load_bits(m, tile, unit, quad);
    let codes = load_codes(m, tile, unit, quad);
    let zero = vec4<f16>(codes.zero);
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = columns(packed(m, bits, j));
        let w0 = vec4<f16>(w[0]) - zero;
        let w1 = vec4<f16>(w[1]) - zero;
        let w2 = vec4<f16>(w[2]) - zero;
        let w3 = vec4<f16>(w[3]) - zero;
        for (var t = 0u; t < TOKENS; t++) {
            let x = vector_of(t, at, j);
            let half = fma(w3, vec4(x.w), fma(w2, vec4(x.z), fma(w1, vec4(x.y), w0 * vec4(x.x))));
            dots[t] += vec4<f32>(half);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        (*sums)[t] += codes.scale * m.alpha * fma(vec4(scale_of(t, at)), dots[t], vec4(m.centre * sum_of(t, at)));
    }
}
