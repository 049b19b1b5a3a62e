// One unit of nested weights times the staged inputs. A group's zero point counts once per sum of inputs.

// A row's unit times the staged unit `at` of every input.
fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, row: u32, sums: ptr<function, Sums>) {
    let bits = load_bits(m, tile, unit, row);
    let a = affine(m, tile, unit, row);
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = codes(bits, j);
        for (var t = 0u; t < TOKENS; t++) {
            dots[t] += dot(w, x_tile[t * (COLS / 4u) + 8u * at + j]);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        (*sums)[t] = fma(a.x, dots[t], fma(a.y, x_sums[t * (COLS / 32u) + at], (*sums)[t]));
    }
}
