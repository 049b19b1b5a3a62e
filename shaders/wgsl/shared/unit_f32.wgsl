// One unit of unquantized weights times the staged inputs.

fn add_unit(m: Matrix, tile: u32, unit: u32, at: u32, row: u32, sums: ptr<function, Sums>) {
    var dots: Sums;
    for (var j = 0u; j < 8u; j++) {
        let w = four(m, tile, unit, j, row);
        for (var t = 0u; t < TOKENS; t++) {
            dots[t] += dot(w, x_tile[t * (COLS / 4u) + 8u * at + j]);
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        (*sums)[t] += dots[t];
    }
}
