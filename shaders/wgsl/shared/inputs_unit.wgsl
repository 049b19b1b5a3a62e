// A unit of 32 inputs in one invocation, which then knows the greatest: for those that share a scale.

struct Unit {
    x: array<vec4<f32>, 8>,
    most: f32, // the greatest magnitude, or 0 for one that is as good as none
}

// The `i`th of the units from column `first` on, token after token.
fn read_unit(first: u32, i: u32) -> Unit {
    let t = i / (COLS / 32u);
    let col = first + i % (COLS / 32u) * 32u;
    var unit: Unit;
    var most = vec4<f32>();
    for (var j = 0u; j < 8u; j++) {
        let at = col + 4u * j;
        let x = vec4(input(t, at), input(t, at + 1u), input(t, at + 2u), input(t, at + 3u));
        unit.x[j] = x;
        most = max(most, abs(x));
    }
    unit.most = max(max(most.x, most.y), max(most.z, most.w));
    // What cannot be divided by without overflow.
    if (unit.most < 1.0e-30) {
        unit.most = 0.0;
    }
    return unit;
}
